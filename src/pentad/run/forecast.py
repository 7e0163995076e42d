"""What a run will do, told before it starts: `pentad train --dry-run`.

Invariant: nothing is refused here, and no number is given without a basis: times come from steps that this
configuration has done here, or from the table of GPUs, and say which.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import yaml
from rich.filesize import decimal

from pentad.data.mixture import make_order
from pentad.data.preferences import EncodedPreferences
from pentad.data.prompts import EncodedExamples, EncodedPrompts
from pentad.errors import UserError
from pentad.families.model_files import facts_of
from pentad.layout.cluster_checks import check_microbatches
from pentad.planning.apart import memory_apart, policy_work
from pentad.planning.coefficients import GIB
from pentad.planning.cost import predict_time
from pentad.planning.engine import EngineMemory, predict_engine
from pentad.planning.gpus import gpu_called
from pentad.planning.memory import Workload, predict_peak
from pentad.record.jsonl import read_jsonl
from pentad.record.machine import gpus_here
from pentad.record.run_dir import RunDir
from pentad.record.terminal import duration
from pentad.run.checks import Checked
from pentad.run.prepare import Prepared
from pentad.run.rendering import rendered, reward_call
from pentad.run.workload import workload

# Sections and settings that decide how long a step takes.
_TIMED = ("model", "allocation", "data", "rollout", "reward", "algorithm", "critic", "megatron")
_TIMED_TRAINER = ("prompts_per_step", "tokens_per_microbatch", "dtype", "kernels", "max_staleness")


def forecast(checked: Checked) -> str:
    """Memory, the first prompt, and how much is sampled and trained on, as text."""
    prepared = checked.prepared
    index = make_order(prepared.train.rows, prepared.settings.experiment.seed, prepared.settings.data).next(1)[0]
    row = prepared.train.rows[index]
    blocks = [
        ["memory", *_memory(prepared)],
        [f"the first prompt of the run, {row.id}", *rendered(prepared.train, index, prepared.tokenizer)],
        ["reward", *reward_call(row, prepared.settings.reward)] if isinstance(prepared.train, EncodedPrompts) else [],
        ["the run", *_amounts(checked), f"  time: {_time(checked)}"],
        ["All checks passed; nothing was started."],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _work(prepared: Prepared) -> tuple[Workload, EngineMemory | None]:
    """The largest step, and the memory of an engine where it is known."""
    facts, allocation = facts_of(str(prepared.directory)), prepared.allocation
    work, engine_work, _ = workload(prepared.settings, facts, allocation, _longest(prepared.train, prepared))
    if not gpus_here() and prepared.settings.ray.address is None:
        dtypes = (prepared.settings.trainer.dtype, prepared.settings.rollout.dtype)
        work, engine_work = (
            _with(part, dtype="bf16" if dtype == "bf16" else "fp32")
            for part, dtype in zip((work, engine_work), dtypes, strict=True)
        )
    engine = None
    if allocation.rollout is not None and engine_work is not None:
        engine = predict_engine(facts, allocation.rollout, engine_work)
    return _with(work, engine=engine if allocation.colocated else None), engine


def _with(part: Any, **changes: Any) -> Any:
    return None if part is None else replace(part, **changes)


def _longest(data: EncodedPrompts | EncodedExamples, prepared: Prepared) -> int:
    """Tokens of the longest sequence that is trained on; of pairs, of one of the two."""
    if isinstance(data, EncodedPrompts):
        return max(map(len, data.tokens)) + prepared.settings.rollout.max_response_tokens
    return max(len(prompt) + len(answer) for prompt, answer in data.examples)


def _memory(prepared: Prepared) -> Iterator[str]:
    """Predicted memory of a rank and of an engine, and whether this machine has it."""
    allocation, facts, gpus = prepared.allocation, facts_of(str(prepared.directory)), gpus_here()
    elsewhere = prepared.settings.ray.address is not None
    work, engine = _work(prepared)
    peak = predict_peak(facts, allocation.trainer.layout, policy_work(allocation, work))
    on_gpus = bool(gpus) or elsewhere
    # On a CPU there are no CUDA contexts and no workspaces.
    left_out = () if on_gpus else ("overhead",)
    needs = [(allocation.trainer, allocation.trainer.layout.world, peak.components)]
    for component, (_, ranks) in memory_apart(facts, allocation, work).items():
        most = max(ranks, key=lambda rank: rank.total)
        needs.append((component, component.layout.world, most.components))
    if engine is not None and allocation.rollout is not None and not allocation.colocated:
        needs.append((allocation.rollout, len(allocation.devices(allocation.rollout)), engine.components))
    total = 0
    for component, count, parts in needs:
        known = {name: size for name, size in parts.items() if size and name not in left_out}
        size = sum(known.values())
        total += size * count
        most = ", ".join(f"{name} {_size(part)}" for name, part in sorted(known.items(), key=lambda item: -item[1]))
        unit = "GPU" if on_gpus else "process"
        verdict = ""
        if gpus and not elsewhere:
            room = min(gib for _, gib in gpus)
            verdict = f" of {room:.1f} GiB" + ("" if size <= room * GIB else ": more than there is")
        yield f"  {component}: {_size(size)}{verdict} on each {unit} ({most})"
    if allocation.rollout is not None and engine is None:
        yield f"  {allocation.rollout}: not known, as rollout.engine is one of your own"
    if not on_gpus:
        import psutil

        yield (
            f"  no GPU is found here: {_size(total)} for the models of all processes, beside what each process takes "
            f"for itself; this machine has {_size(psutil.virtual_memory().total)}"
        )


def _amounts(checked: Checked) -> Iterator[str]:
    """Steps, samples, tokens, and what is written."""
    prepared, settings = checked.prepared, checked.prepared.settings
    trainer, steps = settings.trainer, settings.trainer.total_steps
    done = 0 if checked.resume is None else checked.resume.step
    going_on = ""
    if checked.resume is not None:
        going_on = f"; {done} of them are done, and the run goes on from {checked.resume.checkpoint.path}"
    updates = settings.algorithm.updates
    each = f" of {updates} optimizer steps each" if updates > 1 else ""
    yield f"  {steps:,} steps of {trainer.prompts_per_step:,} rows{each}{going_on}"
    left, train = steps - done, prepared.train
    rows = left * trainer.prompts_per_step
    if isinstance(train, EncodedPrompts):
        samples, longest = rows * settings.rollout.n, settings.rollout.max_response_tokens
        mean = sum(map(len, train.tokens)) / len(train)
        yield f"  {samples:,} responses are sampled, {settings.rollout.n} to each prompt, of {longest:,} tokens at most"
        yield f"  tokens: about {samples * mean:,.0f} of prompts, and at most {samples * longest:,} of responses"
    else:
        mean = sum(len(prompt) + len(answer) for prompt, answer in train.examples) / len(train.examples)
        pairs = 2 if isinstance(train, EncodedPreferences) else 1
        yield f"  tokens: about {rows * pairs * mean:,.0f}"
    if prepared.eval:
        freq = trainer.test_freq
        times = left // freq + bool(left % freq) if freq else 1
        times += trainer.val_before_train and not done
        asked = sum(len(data) for data in prepared.eval.values())
        yield f"  evaluations: {times}, of {asked:,} prompts each"
    written = decimal(checked.sources.written_bytes)
    yield f"  written to {checked.run_dir.path}: at most {written} of models and checkpoints"


def _time(checked: Checked) -> str:
    """How long it may take, with the basis of that."""
    settings = checked.prepared.settings
    left = settings.trainer.total_steps - (0 if checked.resume is None else checked.resume.step)
    if times := _measured(checked):
        each = median(times)
        return (
            f"about {duration(left * each)}: {left} steps of {each:.1f} s, the median of the {len(times)} steps that "
            f"{settings.experiment.run_dir} has had with these settings; evaluations and start-up are not counted"
        )
    gpus = gpus_here()
    gpu = gpu_called(*gpus[0], len(gpus)) if gpus and settings.ray.address is None else None
    if gpu is None:
        why = f"no speed of {gpus[0][0]} is known" if gpus else "there is no GPU here to predict the speed of"
        return f"not known: {why}, and no step was measured yet; the first steps of the run show it"
    facts, layout = facts_of(str(checked.prepared.directory)), checked.prepared.allocation.trainer.layout
    work, _ = _work(checked.prepared)
    if check_microbatches(layout, work.microbatches):
        return "not known: the number of microbatches follows from the lengths of the samples"
    work = policy_work(checked.prepared.allocation, work)
    step = predict_time(facts, layout, work, gpu).total * settings.algorithm.updates
    text = f"forward, backward and optimizer at most about {duration(left * step)} ({step:.1f} s a step"
    text += f", predicted for a {gpu.name})"
    if checked.prepared.allocation.rollout is not None:
        text += "; generation, rewards and moving weights are not predicted: the first steps of the run show them"
    return text


def _measured(checked: Checked) -> list[float]:
    """Times of the steps in the run directory, where they are of the same settings."""
    run_dir = RunDir(checked.prepared.settings.experiment.run_dir)
    try:
        then = yaml.safe_load(run_dir.config.read_text(encoding="utf-8"))
        if _timed(then) != _timed(yaml.safe_load(checked.settings_yaml)):
            return []
        rows: Sequence[dict[str, Any]] = list(read_jsonl(run_dir.metrics, []))
    except (OSError, ValueError, yaml.YAMLError, UserError):
        return []
    # The first steps warm up.
    times = [row["time/step"] for row in rows if isinstance(row.get("time/step"), int | float)]
    return times[1:] or times


def _timed(settings: Any) -> Any:
    """The settings that a step's time follows from."""
    if not isinstance(settings, dict) or not isinstance(settings.get("trainer"), dict):
        return None
    return [settings.get(name) for name in _TIMED], [settings["trainer"].get(name) for name in _TIMED_TRAINER]


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= 0.05 * GIB else f"{size / 2**20:.1f} MiB"
