"""Whether a cluster, a token budget and a data type suit a layout and a model.

Pure, beside `pentad.layout.validate`: takes facts and sizes, returns problems with the smallest change that would do.
"""

import difflib
from collections.abc import Iterator

from pentad.families.facts import ModelFacts
from pentad.layout.layout import Layout
from pentad.layout.validate import Problem

DTYPES = ("bf16", "fp32")

_ALIASES = {
    "bfloat16": "bf16",
    "float32": "fp32",
    "float": "fp32",
    "single": "fp32",
    "f32": "fp32",
    "torch.bfloat16": "bf16",
    "torch.float32": "fp32",
}
_LOW = ("fp16", "float16", "half", "fp8", "fp4", "int8", "mxfp8", "nvfp4")


def check_dtype(name: str) -> list[Problem]:
    """What is wrong with the name of a data type; empty when it is one that is trained in."""
    if name in DTYPES:
        return []
    if (meant := _ALIASES.get(name.lower(), name.lower())) in DTYPES:
        return [Problem(f"dtype {name!r} is called {meant} here", f"write {meant}")]
    if name.lower() in _LOW:
        cause = f"dtype {name!r} is not trained in: it needs Transformer Engine or loss scaling"
        return [Problem(cause, "use bf16, which has fp32 masters")]
    near = difflib.get_close_matches(name.lower(), DTYPES, n=1)
    return [Problem(f"there is no dtype {name!r}", f"use {near[0] if near else ' or '.join(DTYPES)}")]


def check_cluster(layout: Layout, gpus_per_node: int) -> list[Problem]:
    """Groups that should stay inside a machine and do not.

    Ranks are numbered t first, then c, d and p. Tensor parallelism exchanges all activations of every layer, so its
    group belongs inside a machine; so does the group that splits an expert.
    """
    return [
        *_inside("t", layout.tensor, layout.world, gpus_per_node),
        *_inside("x", layout.expert_tensor, layout.world, gpus_per_node),
    ]


def _inside(letter: str, size: int, world: int, node: int) -> Iterator[Problem]:
    if world <= node or node % size == 0:
        return
    legal = [part for part in range(1, node + 1) if node % part == 0]
    below = max(part for part in legal if part < size)
    above = next((part for part in legal if part > size), None)
    cause = f"groups of {letter}{size} would cross machines of {node} GPUs"
    yield Problem(cause, f"use {letter}{below}" + (f" or {letter}{above}" if above else ""))


def check_projections(facts: ModelFacts, layout: Layout) -> list[Problem]:
    """Whether the joint query, key and value projection can be split: with t above the key/value heads, heads are."""
    rows = (facts.num_heads + 2 * facts.num_kv_heads) * facts.head_dim
    if rows % layout.tensor == 0 or facts.num_heads % layout.tensor:
        return []
    legal = [size for size in range(1, facts.num_heads) if rows % size == 0 == facts.num_heads % size]
    cause = f"the {rows} rows of the query, key and value projection of {facts.family} cannot be split by"
    return [Problem(f"{cause} t{layout.tensor}", f"use t{max(size for size in legal if size < layout.tensor)}")]


def check_response(facts: ModelFacts, tokens: int) -> list[Problem]:
    """Whether the model has a position left for a prompt before a response of that many tokens."""
    if facts.max_positions is None or tokens < facts.max_positions:
        return []
    cause = (
        f"rollout.max_response_tokens is {tokens}, which leaves no room for a prompt: the model was made for "
        f"{facts.max_positions} tokens"
    )
    return [Problem(cause, f"set rollout.max_response_tokens to {facts.max_positions - 1} or less")]


def check_sequence(facts: ModelFacts, tokens: int) -> list[Problem]:
    """Whether the model was made for sequences of that many tokens."""
    if facts.max_positions is None or tokens <= facts.max_positions:
        return []
    cause = f"a sequence has {tokens} tokens, but the model was made for {facts.max_positions}"
    return [Problem(cause, f"give a sequence of {facts.max_positions} tokens or less")]


def check_microbatches(layout: Layout, microbatches: int) -> list[Problem]:
    """Whether interleaved stages can work on that many microbatches: Megatron takes them in groups of `pipeline`."""
    if layout.virtual == 1 or microbatches % layout.pipeline == 0:
        return []
    cause = (
        f"v{layout.virtual} works on microbatches in groups of p{layout.pipeline}, and {microbatches} are no multiple"
    )
    above = -(-microbatches // layout.pipeline) * layout.pipeline
    below = above - layout.pipeline
    return [Problem(cause, f"use {f'{below} or ' if below else ''}{above} microbatches, or leave v out")]
