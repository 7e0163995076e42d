"""Layouts agree over NCCL as they do over gloo."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Command

from pentad.verify.models import tiny_config

DENSE = ["megatron:t2", "megatron:p2", "megatron:c2", "megatron:d2", "megatron:p2v2"]
MIXTURE = ["megatron:d2e2", "megatron:t2x2", "megatron:(attn:c2|ffn:e2)"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("head", [[], ["--critic"]], ids=["policy", "critic"])
@pytest.mark.parametrize(("family", "layouts"), [("qwen3", DENSE), ("qwen3_moe", MIXTURE)])
def test_layouts_agree(
    family: str, layouts: list[str], head: list[str], dtype: str, pentad: Callable[..., Command], tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    command = pentad(
        "verify", "layouts", family, *head, "--dtype", dtype, "--allocations", *layouts, "--json", str(file)
    )  # fmt: skip
    assert command.ends_within(200) == 0, command.stdout + command.stderr
    report = json.loads(file.read_text())
    assert report["complete"] and report["device"] == "GPU (NCCL)"
    assert len(report["layouts"]) == 1 + len(layouts)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "layout"), [("qwen3", "megatron:c2"), ("qwen3_moe", "megatron:(attn:c2|ffn:e2)")])
def test_gathered_keys_agree(
    family: str, layout: str, dtype: str, pentad: Callable[..., Command], tmp_path: Path
) -> None:
    """3 heads, which two ranks cannot exchange; of a width that the fast kernels take."""
    config = tiny_config(family)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.hidden_size = 3, 1, 64, 192
    config.save_pretrained(tmp_path / "model")
    file = tmp_path / "report.json"
    command = pentad(
        "verify", "layouts", str(tmp_path / "model"), "--shrink", "--layers", "4", "--dtype", dtype,
        "--allocations", layout, "--json", str(file),
    )  # fmt: skip
    assert command.ends_within(200) == 0, command.stdout + command.stderr
    report = json.loads(file.read_text())
    assert report["complete"] and report["device"] == "GPU (NCCL)"
