"""Mixtures of Qwen3 (https://arxiv.org/abs/2505.09388): Qwen3's attention; experts in all layers, or in some."""

from typing import Any

from pentad.families.blocks import ATTENTION, DENSE_MLP, NORMS, QK_NORM, QWEN_EXPERTS
from pentad.families.config_values import ConfigValues
from pentad.families.family import Family
from pentad.families.mixture import dense_layers, mixture_facts, routing

_TINY = {
    "head_dim": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}


def _facts(values: ConfigValues) -> dict[str, Any]:
    experts = mixture_facts(
        values, experts="num_experts", width="moe_intermediate_size", dense_layers=dense_layers(values)
    )
    return {"qk_norm": True, **experts}


FAMILY = Family(
    name="qwen3_moe",
    attention=(*NORMS, *ATTENTION, *QK_NORM),
    dense_mlp=DENSE_MLP,
    mixture=QWEN_EXPERTS,
    defaults={
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
    },
    facts=_facts,
    transformer=lambda values: routing(normalized=values.get("norm_topk_prob")),
    tiny={"qwen3_moe": _TINY, "qwen3_moe_dense": {**_TINY, "mlp_only_layers": [0, 2]}},
)
