"""Qwen3 (https://arxiv.org/abs/2505.09388): queries and keys are normalised, head by head."""

from pentad.families.blocks import ATTENTION, DENSE_MLP, NORMS, QK_NORM
from pentad.families.family import Family

FAMILY = Family(
    name="qwen3",
    attention=(*NORMS, *ATTENTION, *QK_NORM),
    dense_mlp=DENSE_MLP,
    defaults={"num_key_value_heads": 32, "head_dim": 128},
    nullable=frozenset({"num_key_value_heads"}),
    facts=lambda values: {"qk_norm": True},
    # Heads that together are wider than the hidden size, as Qwen3 has them.
    tiny={"qwen3": {"head_dim": 24}},
)
