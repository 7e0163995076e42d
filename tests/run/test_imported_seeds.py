"""Runs of the founding documents' own configurations, scaled down to the quickstart's model: imported, then trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command
from quickstart import REPOSITORY

SEEDS = REPOSITORY / "tests" / "config" / "dialects" / "seeds"
# Layouts of two devices in place of 8 to 48; adapters on layouts with experts.
LAYOUTS = {
    "areal_moe.sh": ("hf:d1+megatron:(attn:d1t2|ffn:d1e2)", "mixture"),
    "siirl.sh": ("hf:d2|megatron:t2", "quickstart"),
    "skyrl.yaml": ("hf:d1|megatron:d1", "quickstart"),
    "areal_lora.yaml": ("hf:d1+megatron:p2", "mixture"),
    "trinity.yaml": ("hf:d2|megatron:t2", "quickstart"),
}
STEPS = 3


@pytest.mark.long
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_seed_trains(
    name: str, request: pytest.FixtureRequest, pentad: Callable[..., Command], tmp_path: Path
) -> None:
    layout, fixture = LAYOUTS[name]
    folder: Path = request.getfixturevalue(fixture)
    run = tmp_path / "run"
    scaled = [
        "experiment.name=seed",
        f"experiment.dir={run}",
        f"model.path={folder / 'model'}",
        f"allocation={layout}",
        f"data.train={folder / 'train.jsonl'}",
        "data.template=text",
        "reward.name=exact",
        f"trainer.total_steps={STEPS}",
        "trainer.prompts_per_step=8",
        "rollout.max_response_tokens=8",
        "rollout.batch_size=64",
        "trainer.dtype=fp32",
        "trainer.schedule.warmup_steps=1",
    ]
    if name == "siirl.sh":
        scaled += [f"data.eval={{sort: {folder / 'eval.jsonl'}}}", "rollout.vllm={}"]
    if name == "areal_lora.yaml":
        scaled += [f"data.eval={{sort: {folder / 'eval.jsonl'}}}", "rollout.vllm={}"]
        scaled += [f"model.tokenizer={folder / 'model'}"]
    command = pentad("train", str(SEEDS / name), *scaled)
    assert command.ends_within(150) == 0, command.stderr + command.stdout
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "time/step" in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert "`pentad import" in command.stdout
