"""Plans and rankings as plain text, within a terminal's width where names allow it."""

from collections.abc import Sequence

from pentad.families.facts import ModelFacts
from pentad.layout.context import ContextMethod, context_method
from pentad.layout.layout import Layout
from pentad.layout.pipeline import Chunk
from pentad.planning.apart import ApartPlan
from pentad.planning.coefficients import GIB
from pentad.planning.engine import EngineMemory
from pentad.planning.gpus import Gpu
from pentad.planning.memory import COMPONENTS, RankMemory, Workload
from pentad.planning.parameters import active_parameters, model_parameters
from pentad.planning.plan import LayoutPlan, fewer_sequences, lighter
from pentad.planning.rank import Candidate, size_text


def draw_plan(plan: LayoutPlan) -> str:
    """The whole plan: GPUs, stages, parameters and memory by stage, time."""
    blocks = [
        _heading(plan.model, plan.facts),
        _allocation(plan),
        _table(["stage", "GPUs", "holds", "parameters", "peak GiB"], _stages(plan), right=(3, 4)),
        f"Predicted peak memory of each rank, in GiB ({plan.work.dtype}, recompute {plan.work.recompute}, "
        f"{plan.work.tokens:,} tokens a microbatch):",
        _memory(plan.memory),
        *_apart(plan),
        *_engine(plan),
        _verdict(plan),
        _time(plan),
    ]
    blocks += [f"note: {note}" for note in plan.notes]
    return "\n\n".join(blocks) + "\n"


def draw_ranking(
    model: str,
    facts: ModelFacts,
    gpus: int,
    gpu: Gpu,
    work: Workload,
    step_tokens: int,
    candidates: list[Candidate],
    top: int,
) -> str:
    """The best layouts with the reason for each, and the nearest of those that do not fit."""
    fitting = [item for item in candidates if item.fits]
    others = [item for item in candidates if not item.fits]
    lines = [
        _heading(model, facts),
        f"{_gpus(gpus)} ({gpu.name}, {gpu.memory_gib:.0f} GiB each): {len(candidates)} legal layouts, "
        f"{len(fitting)} fit in memory.\nOne step has {step_tokens:,} tokens, a microbatch {work.tokens:,} "
        f"({work.dtype}, recompute {work.recompute}); sequences of {work.sequence:,}.",
    ]
    if fitting:
        rows = [_candidate_row(number, item, fitting[0]) for number, item in enumerate(fitting[:top], start=1)]
        head = ["", "layout", "step s", "tokens/s/GPU", "MFU", "GiB", "microbatches", "why"]
        lines.append(_table(head, rows, right=(0, 2, 3, 4, 5, 6)))
        if len(fitting) > top:
            lines.append(f"... and {len(fitting) - top} slower ones (--top shows more, --json FILE all)")
    if others:
        some = others[: max(3, top // 3)]
        rows = [[f"megatron:{item.layout}", f"{item.peak.total / GIB:.1f}", item.reason()] for item in some]
        lines.append(
            f"These {len(others)} do not fit; the nearest:" if len(others) > len(some) else "These do not fit:"
        )
        lines.append(_table(["layout", "GiB", "why"], rows, right=(1,)))
    return "\n\n".join(lines) + "\n"


def _heading(model: str, facts: ModelFacts) -> str:
    total, active = model_parameters(facts), active_parameters(facts)
    text = f"{model}: {facts.family}, {facts.num_layers} layers, {_billions(total)} parameters"
    if facts.num_experts:
        text += f", {_billions(active)} active; {facts.num_experts} experts, {facts.experts_per_token} of them a token"
    return text


def _allocation(plan: LayoutPlan) -> str:
    lines = [_gpus(plan.allocation.world_size)]
    for component in plan.allocation.components:
        devices = plan.allocation.devices(component)
        role = "trainer" if component == plan.allocation.trainer else component.role or "rollout"
        lines.append(f"  {role}  {component}  on {_span(devices[0], devices[-1])}")
    return "\n".join([*lines, *(f"  {line}" for line in describe_layout(plan.layout, plan.facts))])


def describe_layout(layout: Layout, facts: ModelFacts) -> list[str]:
    """The dimensions of a layout in words: a line for the whole, one for context parallelism, one for the experts."""
    words = [
        (layout.pipeline, f"p{layout.pipeline} stages"),
        (layout.data, f"d{layout.data} replicas"),
        (layout.context, f"c{layout.context} parts of each sequence"),
        (layout.tensor, f"t{layout.tensor} parts of each matrix (and of the sequence between them)"),
    ]
    line = " x ".join(text for size, text in words if size > 1) or "one rank"
    if layout.virtual > 1:
        line += f"; v{layout.virtual} chunks on each stage, interleaved"
    lines = [line]
    if (method := context_method(facts, layout)) is not None:
        lines.append(_context(layout, facts, method))
    if facts.num_experts is not None:
        experts = facts.num_experts // layout.expert
        text = f"experts: e{layout.expert} groups of {experts}"
        if layout.expert_tensor > 1:
            text += f", each expert in x{layout.expert_tensor} parts"
        lines.append(f"{text}, {layout.expert_data} replica{'s' if layout.expert_data > 1 else ''} of each")
    return lines


def _context(layout: Layout, facts: ModelFacts, method: ContextMethod) -> str:
    if method == "a2a":
        return f"c{layout.context} exchanges attention heads (all-to-all)"
    ranks, heads = layout.tensor * layout.context, f"{facts.num_heads} heads, {facts.num_kv_heads} of keys and values"
    return f"c{layout.context} gathers keys and values (all-gather): {heads}, cannot be exchanged over {ranks} ranks"


def _stages(plan: LayoutPlan) -> list[list[str]]:
    first = plan.allocation.devices(plan.allocation.trainer)[0]
    size = plan.layout.world // plan.layout.pipeline
    rows = []
    for rank, chunks in zip(plan.memory, plan.chunks, strict=True):
        start = first + rank.stage * size
        for number, chunk in enumerate(chunks):
            rows.append(
                [
                    str(rank.stage) if number == 0 else "",
                    _numbers(start, start + size - 1) if number == 0 else "",
                    _holds(chunk),
                    _billions(rank.parameters.total) if number == 0 else "",
                    f"{rank.total / GIB:.1f}" if number == 0 else "",
                ]
            )
    return rows


def _holds(chunk: Chunk) -> str:
    layers = (
        f"layers {_numbers(chunk.layers[0], chunk.layers[-1])}" if len(chunk.layers) > 1 else f"layer {chunk.layers[0]}"
    )
    return " + ".join(["embedding"] * chunk.embedding + [layers] + ["norm, output layer"] * chunk.head)


def _memory(ranks: Sequence[RankMemory]) -> str:
    shown = [name for name in COMPONENTS if any(rank.components[name] for rank in ranks)]
    rows = [
        [str(rank.stage), *(f"{rank.components[name] / GIB:.2f}" for name in shown), f"{rank.total / GIB:.2f}"]
        for rank in ranks
    ]
    return _table(["stage", *shown, "all"], rows, right=range(1, len(shown) + 2))


def _apart(plan: LayoutPlan) -> list[str]:
    """The memory of reference and critic on GPUs of their own."""
    blocks = []
    for part in plan.apart:
        blocks.append(f"Predicted peak memory of each rank of {part.component} ({part.name}), in GiB:")
        blocks.append(_memory(part.memory))
    return blocks


def _engine(plan: LayoutPlan) -> list[str]:
    """The memory of rollout engines on GPUs of their own; on the trainer's GPUs they are in its table."""
    rollout, engine = plan.allocation.rollout, plan.engine
    if rollout is None or engine is None or plan.allocation.colocated:
        return []
    devices = plan.allocation.devices(rollout)
    work = engine.work
    cells = [f"{size / GIB:.2f}" for size in engine.components.values()]
    row = [str(rollout), _numbers(devices[0], devices[-1]), *cells, f"{engine.total / GIB:.2f}"]
    head = ["engines", "GPUs", *engine.components, "all"]
    return [
        f"Predicted memory of rollout engines on each GPU, in GiB ({work.dtype}, {work.sequences} sequences of "
        f"{work.tokens:,} tokens at once):",
        _table(head, [row], right=range(2, len(row))),
    ]


def _verdict(plan: LayoutPlan) -> str:
    lines = [_trainer_verdict(plan)]
    lines += [_apart_verdict(plan, part) for part in plan.apart]
    if plan.engine is not None and not plan.allocation.colocated:
        lines.append(_engine_verdict(plan, plan.engine))
    return "\n".join(lines)


def _trainer_verdict(plan: LayoutPlan) -> str:
    peak, limit = plan.peak.total / GIB, plan.gpu.memory_gib
    if plan.excess <= 0:
        start = "Fits" if plan.fits else "The trainer fits"
        return f"{start}: {peak:.1f} of {limit:.1f} GiB ({plan.gpu.name}) on stage {plan.peak.stage}."
    text = f"Does not fit: stage {plan.peak.stage} needs {peak:.1f} GiB, {size_text(plan.excess)} more than "
    text += f"the {limit:.1f} of a {plan.gpu.name}."
    if (change := lighter(plan)) is not None:
        return f"{text} It would with {change}."
    name, size = max(plan.peak.components.items(), key=lambda item: item[1])
    return f"{text} Most is {name}, {size / GIB:.1f} GiB."


def _apart_verdict(plan: LayoutPlan, part: ApartPlan) -> str:
    needed, limit = part.peak.total / GIB, plan.gpu.memory_gib
    if (excess := part.excess(plan.gpu)) <= 0:
        return f"The {part.name} fit{'s' if len(part.roles) == 1 else ''}: {needed:.1f} of {limit:.1f} GiB."
    text = f"Does not fit: {part.component} needs {needed:.1f} GiB on each GPU, {size_text(excess)} more than the "
    name, size = max(part.peak.components.items(), key=lambda item: item[1])
    return f"{text}{limit:.1f} of a {plan.gpu.name}. Most is {name}, {size / GIB:.1f} GiB."


def _engine_verdict(plan: LayoutPlan, engine: EngineMemory) -> str:
    needed, limit, rollout = engine.total / GIB, plan.gpu.memory_gib, plan.allocation.rollout
    if plan.engine_excess <= 0:
        return f"Rollout engines fit: {needed:.1f} of {limit:.1f} GiB."
    text = f"Does not fit: {rollout} needs {needed:.1f} GiB on each GPU, {size_text(plan.engine_excess)} more than the "
    text += f"{limit:.1f} of a {plan.gpu.name}."
    if (sequences := fewer_sequences(plan)) is not None:
        return f"{text} It would with rollout.batch_size={sequences}."
    name, size = max(engine.components.items(), key=lambda item: item[1])
    text = f"{text} Most is {name}, {size / GIB:.1f} GiB."
    return f"{text} An hf engine is one GPU, and holds all weights." if rollout and rollout.backend == "hf" else text


def _time(plan: LayoutPlan) -> str:
    time, layout = plan.time, plan.layout
    parts = ", ".join(f"{name} {seconds / time.total:.0%}" for name, seconds in time.parts.items() if seconds)
    bubble = f"bubble {time.bubble:.1%}" + (
        f" = (p{layout.pipeline} - 1) / (v{layout.virtual} * {plan.work.microbatches})" if layout.pipeline > 1 else ""
    )
    beside = "".join(
        f"\nBeside it the {part.name} on {part.component} works for {part.seconds:.2f} s of each step."
        for part in plan.apart
    )
    return (
        f"{plan.work.microbatches} microbatch{'es' if plan.work.microbatches > 1 else ''} a step on each replica; "
        f"{bubble}.\n"
        f"Predicted step {time.total:.2f} s ({parts}): "
        f"{time.tokens_per_second / layout.world:,.0f} tokens/s/GPU, MFU {time.mfu:.0%}."
    ) + beside


def _candidate_row(number: int, item: Candidate, best: Candidate) -> list[str]:
    speed = item.time.tokens_per_second / item.layout.world
    return [
        str(number),
        f"megatron:{item.layout}",
        f"{item.time.total:.2f}",
        f"{speed:,.0f}",
        f"{item.time.mfu:.0%}",
        f"{item.peak.total / GIB:.1f}",
        str(item.microbatches),
        item.reason(best),
    ]


def _gpus(number: int) -> str:
    return f"{number} GPU{'s' if number != 1 else ''}"


def _numbers(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _span(first: int, last: int) -> str:
    return f"GPU {first}" if first == last else f"GPUs {first}-{last}"


def _billions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _table(head: list[str], rows: list[list[str]], right: Sequence[int] = ()) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row: list[str]) -> str:
        cells = (
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in [head, *rows])
