"""Parameters of a model and of each rank, exactly as Megatron holds them under Pentad's mapping.

Invariant: the parts of all ranks of one replica add up to the whole model, with norms and routers (and the gate of a
shared expert) once for each tensor rank, and a tied embedding twice where first and last stage differ.
"""

from collections import Counter
from dataclasses import dataclass

from pentad.families.facts import ModelFacts
from pentad.layout.layout import Layout
from pentad.layout.pipeline import Chunk, layer_kinds, pipeline_chunks

PARTS = ("embedding", "attention", "norms", "mlp", "router", "experts", "shared expert", "head")


@dataclass(frozen=True)
class RankParameters:
    """Parameters of each rank of one pipeline stage.

    Attributes:
        parts: part of the model (`PARTS`) -> number of parameters.
        largest: elements of the largest matrix of a decoder layer; stacked experts count as one.
    """

    parts: dict[str, int]
    largest: int

    @property
    def total(self) -> int:
        """All parameters of the rank."""
        return sum(self.parts.values())

    @property
    def expert(self) -> int:
        """Those whose gradients are reduced over `expert_data` ranks."""
        return self.parts.get("experts", 0)

    @property
    def dense(self) -> int:
        """Those whose gradients are reduced over data and context ranks."""
        return self.total - self.expert


def layer_parameters(facts: ModelFacts, layer: int, layout: Layout) -> dict[str, int]:
    """Parameters of one decoder layer on each rank that holds it."""
    hidden, tensor = facts.hidden_size, layout.tensor
    query, key_value = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    qkv = (query + 2 * key_value) // tensor
    parts = {
        "attention": qkv * hidden + (qkv if facts.qkv_bias else 0) + query // tensor * hidden,
        "norms": 2 * hidden + (2 * facts.head_dim if facts.qk_norm else 0),
    }
    if not facts.has_experts(layer):
        return {**parts, "mlp": 3 * hidden * facts.ffn_hidden_size // tensor}
    assert facts.num_experts is not None and facts.moe_ffn_hidden_size is not None
    width = facts.moe_ffn_hidden_size // layout.expert_tensor
    parts["router"] = facts.num_experts * hidden
    parts["experts"] = facts.num_experts // layout.expert * 3 * hidden * width
    if facts.shared_ffn_hidden_size:
        parts["shared expert"] = 3 * hidden * facts.shared_ffn_hidden_size // tensor + hidden
    return parts


def stage_parameters(facts: ModelFacts, layout: Layout) -> tuple[RankParameters, ...]:
    """Parameters of each rank, for each pipeline stage; the ranks of a stage hold equally many."""
    return tuple(chunk_parameters(facts, layout, chunks) for chunks in pipeline_chunks(facts, layout))


def chunk_parameters(facts: ModelFacts, layout: Layout, chunks: tuple[Chunk, ...]) -> RankParameters:
    """Parameters of each rank that holds these chunks."""
    parts: Counter[str] = Counter()
    table = facts.padded_vocab(layout.tensor) // layout.tensor * facts.hidden_size
    largest = 0
    for layer, count in layer_kinds(facts, chunks).items():
        layer_parts = layer_parameters(facts, layer, layout)
        parts.update({part: count * number for part, number in layer_parts.items()})
        # Gate and up projection are one matrix, two thirds of the block.
        feed_forward = max(layer_parts.get("mlp", 0), layer_parts.get("experts", 0))
        largest = max(largest, 2 * feed_forward // 3)
    for chunk in chunks:
        if chunk.embedding:
            parts["embedding"] += table
        if chunk.head:
            parts["norms"] += facts.hidden_size
            if facts.value_head:
                parts["head"] += facts.hidden_size
            elif not facts.tied or layout.pipeline > 1:
                parts["head"] += table
    return RankParameters({part: parts[part] for part in PARTS if parts[part]}, largest)


def model_parameters(facts: ModelFacts) -> int:
    """Parameters of the whole model; a tied embedding counts once."""
    return stage_parameters(facts, Layout())[0].total


def active_parameters(facts: ModelFacts) -> int:
    """Parameters that take part in computing one token: of the experts only those that it is sent to."""
    parts = stage_parameters(facts, Layout())[0]
    if facts.num_experts is None:
        return parts.total
    return parts.dense + parts.expert // facts.num_experts * facts.experts_per_token


def flops_per_token(facts: ModelFacts, sequence: int) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 for each active parameter but those of the input embedding, which is only looked up, and causal attention.

    Args:
        sequence: tokens of its sequence.
    """
    matrices = active_parameters(facts) - (0 if facts.tied else facts.vocab_size * facts.hidden_size)
    attention = facts.num_layers * facts.num_heads * facts.head_dim * sequence
    return 6.0 * (matrices + attention)
