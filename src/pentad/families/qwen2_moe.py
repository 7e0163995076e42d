"""Mixtures of Qwen1.5 and Qwen2 (https://arxiv.org/abs/2407.10671): beside the experts one that every token passes."""

from typing import Any

from pentad.families.blocks import ATTENTION, DENSE_MLP, NORMS, QKV_BIAS, QWEN_EXPERTS, SHARED_EXPERT
from pentad.families.config_values import ConfigValues
from pentad.families.family import Family, Refusal
from pentad.families.mixture import dense_layers, mixture_facts, routing

_TINY = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 64,
    "norm_topk_prob": False,
}


def _facts(values: ConfigValues) -> dict[str, Any]:
    experts = mixture_facts(
        values, experts="num_experts", width="moe_intermediate_size", dense_layers=dense_layers(values)
    )
    if experts:
        experts["shared_ffn_hidden_size"] = values.size("shared_expert_intermediate_size")
    return {"qkv_bias": True, **experts}


FAMILY = Family(
    name="qwen2_moe",
    attention=(*NORMS, *ATTENTION, *QKV_BIAS),
    dense_mlp=DENSE_MLP,
    mixture=(*QWEN_EXPERTS, *SHARED_EXPERT),
    defaults={
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "qkv_bias": True,
    },
    refused=(
        Refusal("qkv_bias=false", "queries, keys and values have biases", lambda values: not values.get("qkv_bias")),
    ),
    facts=_facts,
    # Its output is weighed by a gate of its own.
    transformer=lambda values: {"moe_shared_expert_gate": True, **routing(normalized=values.get("norm_topk_prob"))},
    tiny={"qwen2_moe": _TINY, "qwen2_moe_dense": {**_TINY, "decoder_sparse_step": 2}},
)
