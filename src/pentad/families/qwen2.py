"""Qwen2 and Qwen2.5 (https://arxiv.org/abs/2407.10671): biases on queries, keys and values."""

from pentad.families.blocks import ATTENTION, DENSE_MLP, NORMS, QKV_BIAS
from pentad.families.family import Family

FAMILY = Family(
    name="qwen2",
    attention=(*NORMS, *ATTENTION, *QKV_BIAS),
    dense_mlp=DENSE_MLP,
    defaults={"num_key_value_heads": 32},
    nullable=frozenset({"num_key_value_heads"}),
    facts=lambda values: {"qkv_bias": True},
    tiny={"qwen2": {}},
)
