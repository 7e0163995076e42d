"""An allocation for a first configuration: the fastest that is predicted to fit.

Invariant: what is chosen is legal for the model and within the GPUs' memory as `pentad.planning` predicts it; without a
GPU it is one engine and one rank in turns.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.layout import Allocation, parse_allocation
from pentad.layout.cluster_checks import check_microbatches
from pentad.layout.validate import check_supported
from pentad.planning.gpus import GPUS, Gpu, gpu_called
from pentad.planning.memory import Workload
from pentad.planning.plan import LayoutPlan, make_plan
from pentad.planning.rank import rank_layouts
from pentad.run.workload import workload

Changes = Mapping[str, Any]
# What makes a run need less memory, the cheapest first: settings by their names.
_LIGHTER: tuple[Changes, ...] = (
    {},
    {"rollout.sleep": True},
    {"rollout.sleep": True, "megatron.transformer.recompute_granularity": "selective"},
    {"rollout.sleep": True, "megatron.transformer.recompute_granularity": "full"},
)


def gpu_of_machine(found: list[tuple[str, float]]) -> Gpu:
    """The GPUs of a machine as planning takes them; of an unknown kind, with the speed of an H100.

    Args:
        found: names and memory in GiB, at least one.
    """
    name, memory = found[0][0], min(gib for _, gib in found)
    known = gpu_called(name, memory, len(found))
    return known or replace(GPUS["h100"], name=name, memory_gib=memory, per_node=len(found))


def choose_layout(
    settings: RunSettings, facts: ModelFacts, gpu: Gpu, gpus: int, longest: int, kept: Collection[str] = ()
) -> tuple[str, Changes, LayoutPlan]:
    """The allocation, what else must be set for it to fit, and its plan.

    Args:
        settings: of the run, with any allocation.
        longest: tokens of the longest sequence that is trained on.
        kept: settings that must stay as they are.

    Raises:
        UserError: nothing fits.
    """
    best = None
    for allocation, changes in _candidates(settings, facts, gpu, gpus, longest):
        if list(check_supported(allocation)) or any(key in kept for key in changes):
            continue
        layout = allocation.trainer.layout
        trained, sampled, notes = workload(_with(settings, changes), facts, allocation, longest)
        if check_microbatches(layout, trained.microbatches):
            continue
        plan = make_plan(settings.model.path, facts, allocation, gpu, trained, sampled, notes)
        if plan.fits:
            return str(allocation), changes, plan
        best = plan if best is None or plan.excess < best.excess else best
    raise _nothing_fits(settings, gpus, gpu, best)


def _candidates(
    settings: RunSettings, facts: ModelFacts, gpu: Gpu, gpus: int, longest: int
) -> Iterator[tuple[Allocation, Changes]]:
    """Allocations of all GPUs with what would make them lighter, in the order in which they are wanted."""
    tokens, samples = settings.trainer.tokens_per_microbatch, settings.trainer.prompts_per_step * settings.rollout.n
    work = Workload(tokens=tokens, sequence=longest, reference="reference" in settings.algorithm.roles)
    ranked = rank_layouts(facts, gpus, gpu, work, 4 * tokens * gpus)
    layouts = [one.layout for one in ranked if one.layout.virtual == 1 and one.layout.data <= samples]
    for changes in _LIGHTER:
        for layout in layouts:
            for engine in _engines(facts, gpus):
                yield parse_allocation(f"{engine}|megatron:{layout}"), changes


def _engines(facts: ModelFacts, gpus: int) -> Iterator[str]:
    """Rollout engines on all GPUs: vLLM's where it is installed, of one GPU each or of more; then hf."""
    if find_spec("vllm") is not None:
        for tensor in (size for size in range(1, gpus + 1) if gpus % size == 0 and facts.num_heads % size == 0):
            data = gpus // tensor
            yield "vllm:" + (f"d{data}" if data > 1 or tensor == 1 else "") + (f"t{tensor}" if tensor > 1 else "")
    yield f"hf:d{gpus}"


def _with(settings: RunSettings, changes: Changes) -> RunSettings:
    """The settings with some changed."""
    if "rollout.sleep" in changes:
        settings = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"sleep": True})})
    if (recompute := changes.get("megatron.transformer.recompute_granularity")) is not None:
        transformer = {**settings.megatron.transformer, "recompute_granularity": recompute}
        megatron = settings.megatron.model_copy(update={"transformer": transformer})
        settings = settings.model_copy(update={"megatron": megatron})
    return settings


def _nothing_fits(settings: RunSettings, gpus: int, gpu: Gpu, nearest: LayoutPlan | None) -> UserError:
    what = f"{settings.model.path} fits on {gpus} GPU{'s' if gpus > 1 else ''} of {gpu.memory_gib:.0f} GiB on no layout"
    if nearest is not None:
        gib = 2**30
        what += f"; the nearest, {nearest.allocation}, needs {nearest.peak.total / gib:.1f} GiB on each"
    return UserError(what, "take a smaller model, more GPUs, or adapters: add model.lora.rank=16 to the command")
