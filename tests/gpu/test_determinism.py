"""With `megatron.use_deterministic_algorithms` a GPU computes the same bits again."""

from pathlib import Path

import pytest
import torch

from pentad.config.schema.megatron import MegatronSettings
from pentad.layout import Layout
from pentad.verify.models import tiny_config, write_random_model
from pentad.verify.verification import Verification


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama_tied", "qwen2_moe"])
def test_same_bits(family: str, dtype: str, tmp_path: Path) -> None:
    write_random_model(tiny_config(family), tmp_path, torch.float32)
    megatron = MegatronSettings(use_deterministic_algorithms=True)
    with Verification(tmp_path, dtype=dtype, devices=1, megatron=megatron) as verification:
        report = verification.check(Layout())
    assert not report.error
    assert {name: item.value for name, item in report.quantities.items() if item.value} == {}
