"""Mistral from v0.2 on (https://arxiv.org/abs/2310.06825): Llama's layers; a sliding window, as in v0.1, is refused."""

from pentad.families.blocks import ATTENTION, DENSE_MLP, NORMS
from pentad.families.family import Family, Refusal

FAMILY = Family(
    name="mistral",
    attention=(*NORMS, *ATTENTION),
    dense_mlp=DENSE_MLP,
    defaults={"num_key_value_heads": 8, "sliding_window": 4096},
    nullable=frozenset({"head_dim"}),
    refused=(
        Refusal(
            "sliding_window",
            "attention sees all earlier tokens",
            lambda values: values.get("sliding_window") is not None,
            'use a model whose config.json says "sliding_window": null, such as Mistral v0.3',
        ),
    ),
    tiny={"mistral": {"sliding_window": None}},
)
