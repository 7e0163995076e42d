"""Whether a model can be trained on a layout, and whether this version can run an allocation.

Pure: takes facts and sizes, returns problems. Each problem names the nearest sizes that would do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.layout.layout import Allocation, Component, Layout

# Of each engine: the letters that it can have, and what to write instead of others.
_ENGINE_LETTERS = {
    "hf": ("d", "write hf:d{world}"),
    "vllm": ("d and t", "write vllm:d{world}, or t for a model that is too large for one GPU"),
}


@dataclass(frozen=True)
class Problem:
    """Something that does not fit, and the smallest change that would make it fit."""

    cause: str
    fix: str


def refuse(problems: Sequence[Problem], subject: str) -> None:
    """Raise one `UserError` for all problems, or nothing if there are none. `subject` says what was checked."""
    if not problems:
        return
    if len(problems) == 1:
        raise UserError(f"{subject}: {problems[0].cause}", problems[0].fix)
    lines = [f"\n  {number}. {item.cause}\n     fix: {item.fix}" for number, item in enumerate(problems, start=1)]
    raise UserError(f"{subject}: {len(problems)} problems" + "".join(lines), "change each of them as said above")


def check_layout(facts: ModelFacts, layout: Layout) -> list[Problem]:
    """Everything that keeps the model from being trained on this layout; empty when all is well.

    Any c does: where heads cannot be exchanged over it, keys are gathered (`layout.context`).
    """
    return [*_tensor(facts, layout), *_pipeline(facts, layout), *_experts(facts, layout)]


def check_supported(allocation: Allocation) -> list[Problem]:
    """What this version cannot run yet, though the string is right; empty when all is well."""
    if (rollout := allocation.rollout) is None:
        return []
    if rollout.backend not in ("hf", "vllm"):
        cause = f"{rollout}: backend {rollout.backend} is not available yet; this version generates with vllm or hf"
        return [Problem(cause, f"write vllm:d{rollout.layout.world}")]
    problems = []
    allowed, fix = _ENGINE_LETTERS[rollout.backend]
    for name, letter in {"tensor": "t", "pipeline": "p", "context": "c"}.items():
        if (size := getattr(rollout.layout, name)) > 1 and letter not in allowed:
            cause = f"{rollout}: {letter}{size} is not possible; {rollout.backend} engines have only {allowed}"
            problems.append(Problem(cause, fix.format(world=rollout.layout.world)))
    return problems


def check_engine(facts: ModelFacts, engine: Component) -> list[Problem]:
    """Everything that keeps the engines of a component from holding the model; empty when all is well."""
    parts, heads, kv_heads = engine.layout.tensor, facts.num_heads, facts.num_kv_heads

    def fits(size: int) -> bool:
        return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)

    if fits(parts):
        return []
    what = f"{heads} attention heads" if heads % parts else f"{kv_heads} key/value heads"
    cause = f"the {what} of {facts.family} cannot be split by t{parts} of {engine}"
    return [Problem(cause, _nearest("t", parts, heads, fits))]


def _tensor(facts: ModelFacts, layout: Layout) -> Iterator[Problem]:
    tensor, heads, kv_heads = layout.tensor, facts.num_heads, facts.num_kv_heads
    # The shared expert is split by t as a dense layer is; routed experts are split by x.
    widths = {"feed-forward": facts.ffn_hidden_size, "shared expert": facts.shared_ffn_hidden_size}

    def heads_fit(parts: int) -> bool:
        return heads % parts == 0

    def kv_fits(parts: int) -> bool:
        # Fewer heads than parts are replicated, each to the same number of parts.
        return kv_heads % parts == 0 or parts % kv_heads == 0

    def tensor_fits(size: int) -> bool:
        return heads_fit(size) and kv_fits(size) and all(width % size == 0 for width in widths.values())

    def fix_tensor() -> str:
        return _nearest("t", tensor, heads, tensor_fits)

    if not heads_fit(tensor):
        yield Problem(f"the {heads} attention heads of {facts.family} cannot be split by t{tensor}", fix_tensor())
    elif not kv_fits(tensor):
        yield Problem(
            f"the {kv_heads} key/value heads of {facts.family} can neither be split by t{tensor} nor replicated evenly",
            fix_tensor(),
        )
    for name, width in widths.items():
        if width % tensor:
            yield Problem(f"the {name} width {width} of {facts.family} cannot be split by t{tensor}", fix_tensor())


def _pipeline(facts: ModelFacts, layout: Layout) -> Iterator[Problem]:
    stages = layout.pipeline * layout.virtual
    if stages <= facts.num_layers:
        return
    if layout.virtual > 1 and layout.pipeline <= facts.num_layers:
        cause = f"p{layout.pipeline} * v{layout.virtual} = {stages} pieces"
        most = facts.num_layers // layout.pipeline
        fix = f"use v{most} or less" if most > 1 else "leave v out"
    else:
        cause, fix = f"p{layout.pipeline} stages", f"use p{facts.num_layers} or less"
    yield Problem(f"{facts.family} has {facts.num_layers} layers, too few for {cause}", fix)


def _experts(facts: ModelFacts, layout: Layout) -> Iterator[Problem]:
    for letter, size in (("e", layout.expert), ("x", layout.expert_tensor)):
        if size > 1 and facts.num_experts is None:
            yield Problem(f"{facts.family} is a dense model; {letter}{size} needs experts", f"leave {letter}{size} out")
    if facts.num_experts is not None and facts.num_experts % layout.expert:
        experts = facts.num_experts
        yield Problem(
            f"the {experts} experts of {facts.family} cannot be spread evenly over e{layout.expert}",
            _nearest("e", layout.expert, experts, lambda size: experts % size == 0),
        )
    width = facts.moe_ffn_hidden_size
    if facts.num_experts is not None and width is not None and width % layout.expert_tensor:
        yield Problem(
            f"the expert width {width} of {facts.family} cannot be split by x{layout.expert_tensor}",
            _nearest("x", layout.expert_tensor, width, lambda size: width % size == 0),
        )


def _nearest(letter: str, wanted: int, most: int, fits: Callable[[int], bool]) -> str:
    """Name the largest legal size below `wanted` and the smallest above it, up to `most`."""
    below = next((size for size in range(wanted - 1, 0, -1) if fits(size)), None)
    above = next((size for size in range(wanted + 1, most + 1) if fits(size)), None)
    sizes = [f"{letter}{size}" for size in (below, above) if size is not None]
    return "use " + " or ".join(sizes) if sizes else f"leave {letter} out"
