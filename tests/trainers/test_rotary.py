"""Rotary tables are transformers' own, bit for bit, under every scaling rule."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pentad.trainers.megatron.rotary import RotaryTable

RULES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("head_dim", [None, 24])
def test_tables(rule: str, head_dim: int | None) -> None:
    config = LlamaConfig(
        rope_parameters={"rope_type": rule, "rope_theta": 5e5, **RULES[rule]},
        head_dim=head_dim,
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    table = RotaryTable(config, torch.device("cpu"))
    for length in (10, 700):  # the second is longer than what is made at first
        mine = table.tables(length)
        theirs = LlamaRotaryEmbedding(config)(torch.empty(0), torch.arange(len(mine[0]))[None])
        assert len(mine[0]) >= length
        for one, other in zip(mine, theirs, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other[0])
