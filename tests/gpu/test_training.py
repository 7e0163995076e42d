"""Reinforcement learning with trainer and engine on GPUs, sharing one or apart."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Command
from quickstart import REPOSITORY

from pentad.layout import parse_allocation

PRECISIONS = {"fp32": 1e-4, "bf16": 0.3}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    "allocation", ["hf:d1|megatron:d1", "hf:d1+megatron:d1", "hf:d2|megatron:p2", "hf:d2|megatron:c2"]
)
def test_engine_and_trainer_agree(
    allocation: str, dtype: str, quickstart: Path, pentad: Callable[..., Command], tmp_path: Path
) -> None:
    if torch.cuda.device_count() < parse_allocation(allocation).world_size:
        pytest.skip("needs more GPUs")
    run = tmp_path / "run"
    command = pentad(
        "train",
        str(REPOSITORY / "examples" / "quickstart.yaml"),
        f"allocation={allocation}",
        f"experiment.dir={run}",
        f"model.path={quickstart / 'model'}",
        f"data.train={quickstart / 'train.jsonl'}",
        f"data.eval={{sort: {quickstart / 'eval.jsonl'}}}",
        f"trainer.dtype={dtype}",
        f"rollout.dtype={dtype}",
        "trainer.total_steps=8",
    )
    assert command.ends_within(180) == 0, command.stdout + command.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/step" in row]
    assert len(rows) == 8
    for row in rows:
        assert row["data/samples_generated"] == row["data/samples_consumed"] == 256
        assert row["rollout/logprob_diff_max"] <= PRECISIONS[dtype]
    assert (run / "model" / "model.safetensors").is_file()
