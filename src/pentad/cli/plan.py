"""`pentad plan`: what a model needs on a layout, or which layouts suit a number of GPUs. No GPU, no download.

Invariant: an option that would not be read is refused. Imports wait until a form of the command needs them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pentad.errors import UserError

if TYPE_CHECKING:
    from pentad.config.schema.run import RunSettings
    from pentad.families.facts import ModelFacts
    from pentad.layout import Allocation
    from pentad.planning.engine import EngineWork
    from pentad.planning.memory import Workload
    from pentad.planning.plan import LayoutPlan

_TOKENS, _MICROBATCHES, _SEQUENCE, _TOP, _GPU = 8192, 8, 4096, 10, "h200"

# Options besides --gpu and --json -> the forms that read them.
_FORMS = {
    "model": ("layout", "ranking"),
    "allocation": ("layout",),
    "gpus": ("ranking",),
    "tokens": ("layout", "ranking"),
    "microbatches": ("layout",),
    "step_tokens": ("ranking",),
    "sequence": ("layout", "ranking"),
    "recompute": ("layout", "ranking"),
    "dtype": ("layout", "ranking"),
    "top": ("ranking",),
}
_NAMES = {"config": "a CONFIG file", "layout": "--allocation", "ranking": "--gpus"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command's three forms."""
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help="plan this configuration")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that go over the file")
    parser.add_argument(
        "--model", help="a directory, a config.json, a .gguf file, a hub name, or a tiny model of `verify`"
    )
    parser.add_argument("--allocation", help="plan the model on this layout, as megatron:d2t4")
    parser.add_argument("--gpus", type=int, help="rank all layouts of the model on so many GPUs")
    parser.add_argument("--gpu", help=f"kind of GPU: a100, h100, h200, b200 (default {_GPU})")
    parser.add_argument("--tokens", type=int, help=f"tokens of a microbatch on one replica (default {_TOKENS})")
    parser.add_argument("--microbatches", type=int, help=f"of a step on one replica (default {_MICROBATCHES})")
    parser.add_argument("--step-tokens", type=int, help="with --gpus: tokens of a step (default 4 * tokens * gpus)")
    parser.add_argument(
        "--sequence",
        type=int,
        help=f"tokens of a sequence (default {_SEQUENCE}, at most --tokens and the model's positions)",
    )
    parser.add_argument("--recompute", help="none (default), selective or full")
    parser.add_argument("--dtype", help="bf16 (default) or fp32")
    parser.add_argument("--top", type=int, help=f"with --gpus: how many layouts are shown (default {_TOP})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")


def plan(options: argparse.Namespace) -> int:
    """Run the form of the command that the options ask for."""
    form = _form(options)
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import plan_to_json

    gpu = gpu_of(options.gpu or _GPU)
    if form == "ranking":
        return _rank(options)
    if form == "layout":
        planned = _plan_layout(options)
    else:
        planned = plan_configuration(options.config, options.overrides, gpu.name)
    from pentad.planning.draw import draw_plan

    sys.stdout.write(draw_plan(planned))
    _write(options.json, plan_to_json(planned))
    return 0


def plan_configuration(path: Path, overrides: Sequence[str], gpu: str) -> "LayoutPlan":
    """Plan trainer and engines of a configuration.

    Raises:
        UserError: something is wrong with the settings, the model or the layout.
    """
    from pentad.config.loading.load import load_settings
    from pentad.families.model_files import facts_of
    from pentad.layout import parse_allocation
    from pentad.layout.cluster_checks import check_response
    from pentad.layout.megatron_checks import check_transformer
    from pentad.layout.validate import check_layout, check_supported, refuse
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import make_plan

    loaded = load_settings(path, overrides)
    settings = loaded.settings
    allocation = parse_allocation(settings.allocation)
    facts = facts_of(settings.model.path)
    if settings.algorithm.trains_on == "rollouts" or any(one.generates for one in settings.data.eval.values()):
        refuse(check_response(facts, settings.rollout.max_response_tokens), settings.model.path)
    work, engine, notes = _workload(settings, facts, allocation)
    notes += loaded.notices + tuple(item.cause for item in check_supported(allocation))
    layout = allocation.trainer.layout
    if not check_layout(facts, layout):  # else `make_plan` refuses it
        refuse(check_transformer(facts, layout, settings.megatron.transformer), "megatron.transformer")
    return make_plan(settings.model.path, facts, allocation, gpu_of(gpu), work, engine, notes)


def _form(options: argparse.Namespace) -> str:
    given = {name: getattr(options, name) for name in _FORMS if getattr(options, name) is not None}
    if options.config is not None:
        form = "config"
    elif options.gpus is not None and options.allocation is None:
        form = "ranking"
    else:
        form = "layout"
    for name in given:
        if form not in _FORMS[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is not read together with {_NAMES[form]}", f"leave {flag} out")
    if form == "config":
        return form
    if "model" not in given:
        raise UserError(
            "there is nothing to plan",
            "write `pentad plan FILE.yaml`, `pentad plan --model M --allocation megatron:d2t4`, or "
            "`pentad plan --model M --gpus 8`",
        )
    if form == "layout" and "allocation" not in given:
        raise UserError("no layout is given", "give --allocation, as megatron:d2t4, or --gpus to compare all layouts")
    return form


def _work(options: argparse.Namespace, facts: "ModelFacts") -> "Workload":
    from pentad.layout.cluster_checks import check_sequence
    from pentad.layout.validate import refuse
    from pentad.planning.memory import Workload

    tokens = _TOKENS if options.tokens is None else options.tokens
    if options.sequence is not None:
        refuse(check_sequence(facts, options.sequence), f"--sequence {options.sequence}")
    sequence = min(_SEQUENCE, tokens, facts.max_positions or tokens)
    return Workload(
        tokens=tokens,
        microbatches=_MICROBATCHES if options.microbatches is None else options.microbatches,
        sequence=sequence if options.sequence is None else options.sequence,
        dtype=options.dtype or "bf16",
        recompute=options.recompute or "none",
    )


def _facts(model: str) -> "ModelFacts":
    """The facts of a built-in model, which `pentad verify` has too, or of any other."""
    from pentad.families.builtin import builtin_config, builtin_models
    from pentad.families.hf_config import facts_from_config
    from pentad.families.model_files import facts_of

    return facts_from_config(builtin_config(model), model) if model in builtin_models() else facts_of(model)


def _plan_layout(options: argparse.Namespace) -> "LayoutPlan":
    from pentad.layout import parse_allocation
    from pentad.planning.engine import EngineWork
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import make_plan

    facts = _facts(options.model)
    allocation = parse_allocation(options.allocation)
    work = _work(options, facts)
    engine = EngineWork(tokens=work.sequence, dtype=work.dtype)
    return make_plan(options.model, facts, allocation, gpu_of(options.gpu or _GPU), work, engine)


def _rank(options: argparse.Namespace) -> int:
    from pentad.planning.draw import draw_ranking
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import make_ranking, ranking_to_json

    facts, gpu = _facts(options.model), gpu_of(options.gpu or _GPU)
    work = _work(options, facts)
    top = _TOP if options.top is None else options.top
    if top < 1:
        raise UserError(f"--top {top} shows nothing", "give 1 or more")
    step_tokens = 4 * work.tokens * options.gpus if options.step_tokens is None else options.step_tokens
    candidates = make_ranking(facts, options.gpus, gpu, work, step_tokens)
    subject = (options.model, facts, options.gpus, gpu, work, step_tokens, candidates)
    sys.stdout.write(draw_ranking(*subject, top))
    _write(options.json, ranking_to_json(*subject))
    return 0


def _workload(
    settings: "RunSettings", facts: "ModelFacts", allocation: "Allocation"
) -> "tuple[Workload, EngineWork | None, tuple[str, ...]]":
    """The work of one optimizer step and of an engine under a configuration, and what had to be assumed."""
    from pentad.layout import Layout
    from pentad.layout.pipeline import pipeline_chunks
    from pentad.planning.adapters import adapter_parameters, adapter_work
    from pentad.planning.engine import EngineWork
    from pentad.planning.memory import Workload
    from pentad.planning.parameters import model_parameters

    trainer, algorithm, layout = settings.trainer, settings.algorithm, allocation.trainer.layout
    rollouts = algorithm.trains_on == "rollouts"
    if rollouts:
        bound, what = settings.data.max_prompt_tokens + settings.rollout.max_response_tokens, "samples"
        # Minibatches are of whole groups; the largest is planned.
        samples = -(-trainer.prompts_per_step // algorithm.updates) * settings.rollout.n
        why = "the longest; shorter ones make fewer"
    else:
        bound, what, why = settings.data.max_prompt_tokens, "rows", "data.max_prompt_tokens"
        samples = trainer.prompts_per_step * (2 if algorithm.trains_on == "preferences" else 1)
    longest = min(bound, facts.max_positions or bound)
    if longest < bound:
        # The settings are a bound, and often a default; a run looks at the prompts that it has.
        why = f"the model's positions; the settings would allow {bound:,}, and a run checks whether its prompts fit"
    notes = [f"microbatches are counted for {what} of {longest:,} tokens: {why}"]
    together = max(1, trainer.tokens_per_microbatch // longest)
    microbatches = max(1, -(-samples // (layout.data * together)))
    if layout.virtual > 1:
        microbatches = -(-microbatches // layout.pipeline) * layout.pipeline

    adapters, adapted = None, 0
    if (lora := settings.model.adapters) is not None:
        adapters = adapter_work(lora, facts, layout)
        whole = adapter_parameters(facts, Layout(), pipeline_chunks(facts, Layout())[0], adapters)
        share, adapted = whole.total / model_parameters(facts), whole.base
        notes.append(
            f"LoRA of rank {adapters.rank}: {whole.total:,} parameters are trained, {share:.2%} of the model's"
        )
    engine = EngineWork(
        adapted=adapted,
        sequences=settings.rollout.batch_size,
        tokens=longest if rollouts else _longest_evaluated(settings, facts),
        dtype="fp32" if settings.rollout.dtype == "fp32" else "bf16",
        sleeps=settings.rollout.sleep,
    )
    if allocation.rollout is not None and settings.rollout.engine is not None:
        notes.append(f"the memory of rollout.engine={settings.rollout.engine} is not known, and not counted")
    work = Workload(
        tokens=trainer.tokens_per_microbatch,
        microbatches=microbatches,
        sequence=longest,
        dtype="bf16" if trainer.dtype == "auto" else trainer.dtype,
        recompute=_recompute(settings.megatron.transformer),
        reference="reference" in algorithm.roles,
        critic=_critic(settings, facts),
        adapters=adapters,
    )
    return work, engine if settings.rollout.engine is None else None, tuple(notes)


def _critic(settings: "RunSettings", policy: "ModelFacts") -> "ModelFacts | None":
    from pentad.families.model_files import facts_of
    from pentad.weights.source import CRITIC

    if "critic" not in settings.algorithm.roles:
        return None
    if settings.critic.model is None:
        return policy.as_critic()
    own = Path(settings.critic.model).expanduser() / CRITIC
    return facts_of(str(own) if (own / "config.json").is_file() else settings.critic.model).as_critic()


def _longest_evaluated(settings: "RunSettings", facts: "ModelFacts") -> int:
    """Tokens of the longest prompt and response of an evaluation."""
    bound = settings.data.max_prompt_tokens + settings.longest_response
    return min(bound, facts.max_positions or bound)


def _recompute(transformer: dict[str, Any]) -> Any:
    granularity = transformer.get("recompute_granularity")
    return granularity if granularity in ("selective", "full") else "none"


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written: {error.strerror}", "give another file") from None
