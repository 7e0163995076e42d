"""Real runs of algorithms: what they read is computed, what they report has a name, an adapted penalty goes on."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command

from pentad.record.metric_table import find_metric

# The untrained model answers nothing right; this tells its answers apart.
_REWARD = "def score(response, ground_truth):\n    return sum(map(ord, response)) % 5 / 4\n"
_ALGORITHMS = {
    "dapo": "{name: dapo, kl_coef: 0.1, kl_target: 0.001, optimizer_steps: 2}",
    "reinforce_pp": "{name: reinforce_pp, kl_coef: 0.1, entropy_coef: 0.01, reward_clip: 0.5}",
    "gspo": "{name: gspo, optimizer_steps: 2, loss_mean: constant}",
    "dpo": "{name: dpo}",
}


def train(pentad: Callable[..., Command], quickstart: Path, tmp_path: Path, algorithm: str, *more: str) -> list[dict]:
    """The metrics of each step of a short run."""
    (tmp_path / "rewards.py").write_text(_REWARD)
    rows = "pairs" if algorithm == "dpo" else "train"
    rollouts = "" if algorithm == "dpo" else "rollout: {n: 4, max_response_tokens: 6}\nreward: {name: rewards:score}"
    (tmp_path / "run.yaml").write_text(f"""
experiment: {{name: run, dir: run}}
allocation: {"megatron:d2" if algorithm == "dpo" else "hf:d1+megatron:d2"}
model: {{path: {quickstart}/model}}
data: {{train: {quickstart}/{rows}.jsonl, template: text}}
{rollouts}
algorithm: {_ALGORITHMS[algorithm]}
trainer: {{total_steps: 2, prompts_per_step: 4, optimizer: {{lr: 1.0e-2}}, export: false}}
""")
    command = pentad("train", str(tmp_path / "run.yaml"), *more)
    assert command.ends_within(240) == 0, command.stderr
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "time/step" in row]


def unnamed(row: dict) -> set[str]:
    """What is not in the table of metrics."""
    return {name for name in row if name != "step" and find_metric(name) is None}


@pytest.mark.slow
def test_pairs_are_learnt_from(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    first, second = train(pentad, quickstart, tmp_path, "dpo")
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6) and first["train/preference_margin"] == 0
    assert second["train/preference_margin"] != 0 and first["data/samples_consumed"] == 8
    assert not unnamed(first) | unnamed(second)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", [name for name in _ALGORITHMS if name != "dpo"])
def test_algorithms_run(algorithm, quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    rows = train(pentad, quickstart, tmp_path, algorithm, "trainer.save_freq=1")
    assert [row["step"] for row in rows] == [1, 2]
    assert not set().union(*map(unnamed, rows))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    if algorithm == "dapo":
        assert rows[0]["train/kl_coef"] == pytest.approx(0.1)
        again = train(pentad, quickstart, tmp_path, algorithm, "trainer.save_freq=1", "trainer.total_steps=3")
        assert len(again) == 3 and again[2]["train/kl_coef"] not in (0.1, again[1]["train/kl_coef"])
