"""Which layers each pipeline stage holds.

Invariant: every layer is in exactly one chunk, every chunk has at least one layer, and no other split of equal layers
makes the slowest chunk faster. Pure, so that every rank and every plan comes to the same split.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pentad.families.facts import ModelFacts
from pentad.layout.layout import Layout

# Context at which attention is weighed against the output layer, in tokens: the split must not depend on the batch.
_NOMINAL_SEQUENCE = 2048

# Work of a weight, forward and backward, in matrix products of its size; the output layer computes its logits again.
_PRODUCTS = 3.0
_HEAD_PRODUCTS = 4.0

# Routed experts take this many times the time of dense layers for the same work: small products, and moving tokens.
_EXPERT_SLOWNESS = 3.0


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive layers that one rank computes in one go.

    Attributes:
        stage: the pipeline stage that holds it.
        virtual: its number on that stage.
        layers: numbers of its layers, from 0.
        embedding: whether the input embedding is in front of them.
        head: whether the final norm and the output layer follow them.
    """

    stage: int
    virtual: int
    layers: range
    embedding: bool
    head: bool


def split_layers(num_layers: int, stages: int, embedding_cost: float = 0.0, head_cost: float = 0.0) -> tuple[int, ...]:
    """Layers of each stage, such that the slowest stage is as fast as can be.

    Each layer goes where it makes the least load, which is optimal as layers are equal. Of equally good stages the
    later one gets it, as it keeps the activations of fewer microbatches.

    Args:
        num_layers: layers in all.
        stages: pipeline stages times virtual stages, in the order in which a token passes them.
        embedding_cost: time of the embedding, which the first stage computes too, over that of a layer.
        head_cost: time of final norm, output layer and loss, which the last stage computes too, over that of a layer.

    Raises:
        ValueError: fewer layers than stages, no stages, or a negative cost.
    """
    if stages < 1 or num_layers < stages:
        raise ValueError(f"{num_layers} layers cannot fill {stages} stages")
    if min(embedding_cost, head_cost) < 0:
        raise ValueError("a cost is negative")
    loads = [1.0] * stages
    loads[0] += embedding_cost
    loads[-1] += head_cost
    layers = [1] * stages
    queue = [(load + 1, -stage) for stage, load in enumerate(loads)]
    heapq.heapify(queue)
    for _ in range(num_layers - stages):
        load, negative = queue[0]
        layers[-negative] += 1
        heapq.heapreplace(queue, (load + 1, negative))
    return tuple(layers)


def edge_costs(facts: ModelFacts) -> tuple[float, float]:
    """Time of the embedding and of the output layer, each over that of a decoder layer.

    By floating-point operations at a nominal context, with routed experts weighed by what they take in practice. The
    embedding is a table look-up and costs next to nothing.
    """
    layer = facts.num_layers - 1
    matrices = facts.head_dim * (2 * facts.num_heads + 2 * facts.num_kv_heads) * facts.hidden_size
    if facts.has_experts(layer):
        routed = facts.experts_per_token * (facts.moe_ffn_hidden_size or 0)
        width = _EXPERT_SLOWNESS * routed + facts.shared_ffn_hidden_size
    else:
        width = facts.ffn_hidden_size
    matrices += 3 * width * facts.hidden_size
    # Scores and weighted values, half of them masked.
    attention = facts.num_heads * facts.head_dim * _NOMINAL_SEQUENCE
    head = 0 if facts.value_head else facts.vocab_size * facts.hidden_size
    return 0.0, _HEAD_PRODUCTS * head / (_PRODUCTS * (matrices + attention))


def stage_layers(facts: ModelFacts, layout: Layout) -> tuple[int, ...]:
    """Layers of each virtual stage of a layout, in the order in which a token passes them."""
    return split_layers(facts.num_layers, layout.pipeline * layout.virtual, *edge_costs(facts))


def pipeline_chunks(facts: ModelFacts, layout: Layout) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of each pipeline stage. As in Megatron, chunk v of stage s is virtual stage `v * pipeline + s`."""
    return _pipeline_chunks(facts, layout.pipeline, layout.virtual)


@lru_cache(maxsize=256)
def _pipeline_chunks(facts: ModelFacts, pipeline: int, virtual_stages: int) -> tuple[tuple[Chunk, ...], ...]:
    counts = split_layers(facts.num_layers, pipeline * virtual_stages, *edge_costs(facts))
    starts = [sum(counts[:stage]) for stage in range(len(counts))]
    last = len(counts) - 1

    def chunk(stage: int, virtual: int) -> Chunk:
        number = virtual * pipeline + stage
        layers = range(starts[number], starts[number] + counts[number])
        return Chunk(stage, virtual, layers, embedding=number == 0, head=number == last)

    return tuple(tuple(chunk(stage, virtual) for virtual in range(virtual_stages)) for stage in range(pipeline))


def layer_kinds(facts: ModelFacts, chunks: Sequence[Chunk]) -> dict[int, int]:
    """Kinds of layers in some chunks: number of a layer of that kind -> how many there are."""
    if not facts.dense_layers:
        return {chunks[0].layers[0]: sum(len(chunk.layers) for chunk in chunks)}
    layers = [layer for chunk in chunks for layer in chunk.layers]
    kinds = [[layer for layer in layers if facts.has_experts(layer) is wanted] for wanted in (False, True)]
    return {kind[0]: len(kind) for kind in kinds if kind}


def distinct_stages(facts: ModelFacts, layout: Layout) -> tuple[int, ...]:
    """The first stage of each make-up: a later one of the same takes as long, and no more memory."""
    return _distinct_stages(facts, layout.pipeline, layout.virtual)


@lru_cache(maxsize=256)
def _distinct_stages(facts: ModelFacts, pipeline: int, virtual_stages: int) -> tuple[int, ...]:
    first: dict[tuple[object, ...], int] = {}
    for stage, chunks in enumerate(_pipeline_chunks(facts, pipeline, virtual_stages)):
        make_up = [
            (facts.has_experts(layer), count, chunk.embedding, chunk.head)
            for chunk in chunks
            for layer, count in layer_kinds(facts, (chunk,)).items()
        ]
        first.setdefault(tuple(make_up), stage)
    return tuple(first.values())


def chunks_in_flight(layout: Layout, stage: int, microbatches: int, weights: tuple[float, ...]) -> float:
    """Largest sum of `weights` over the forward passes whose backward pass is still to come.

    Megatron's 1F1B: a stage runs ahead by the stages behind it. Interleaved: by twice those, plus one round for every
    further chunk; microbatches go through the chunks in groups of `pipeline` (https://arxiv.org/abs/2104.04473).

    Args:
        stage: the pipeline stage.
        microbatches: of one step.
        weights: of each chunk of that stage, such as its activation memory.
    """
    behind, total = layout.pipeline - stage - 1, microbatches * layout.virtual
    if layout.pipeline == 1:
        return sum(weights)
    if layout.virtual == 1:
        return min(behind + 1, microbatches) * weights[0]
    ahead = min(2 * behind + (layout.virtual - 1) * layout.pipeline, total)
    forward: list[float] = []
    backward: list[float] = []
    # The schedule repeats; two rounds behind the warm-up show every state.
    for start in range(0, min(microbatches, ahead + 2 * layout.pipeline), layout.pipeline):
        group = min(layout.pipeline, microbatches - start)
        for weight, reverse in zip(weights, reversed(weights), strict=True):
            forward += [weight] * group
            backward += [reverse] * group
    held = peak = sum(forward[:ahead])
    for following, finished in zip(forward[ahead:], backward, strict=False):
        held += following
        peak = max(peak, held)
        held -= finished
    return peak
