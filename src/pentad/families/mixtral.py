"""Mixtral (https://arxiv.org/abs/2401.04088): all layers have experts, whose width is called the intermediate size."""

from pentad.families.blocks import ATTENTION, NORMS, experts
from pentad.families.family import Family, Refusal
from pentad.families.mixture import mixture_facts, routing

FAMILY = Family(
    name="mixtral",
    attention=(*NORMS, *ATTENTION),
    mixture=experts("block_sparse_moe", "w1", "w3", "w2"),
    defaults={"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    nullable=frozenset({"head_dim"}),
    refused=(
        Refusal("sliding_window", "attention sees all earlier tokens", lambda values: values.get("sliding_window")),
    ),
    facts=lambda values: mixture_facts(values, experts="num_local_experts", width="intermediate_size"),
    transformer=lambda values: routing(normalized=True),
    tiny={"mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}},
)
