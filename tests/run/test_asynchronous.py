"""Asynchronous training loses no sample and trains none twice, whatever is killed.

An algorithm that writes down what each step is trained on is the witness.
"""

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Command
from quickstart import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS, PROMPTS, SAMPLES, STALENESS = 14, 8, 4, 2
LEDGER = REPOSITORY / "tests" / "outside" / "ledger.py"
Pentad = Callable[..., Command]

# Depends on every character, so that groups hold different rewards.
REWARD = """
def score(response):
    return sum((place + 1) * ord(character) for place, character in enumerate(response)) % 11 / 10
"""


def configure(folder: Path, data: Path) -> Path:
    (folder / "scoring.py").write_text(REWARD)
    config = folder / "run.yaml"
    config.write_text(f"""
experiment: {{name: stale, dir: stale}}
allocation: hf:d2+megatron:d1
model: {{path: {data}/model}}
data: {{train: {data}/train.jsonl, template: text, max_prompt_tokens: 9}}
reward: {{name: "scoring.py:score"}}
algorithm: {{name: "{LEDGER}:Ledger", options: {{file: {folder}/ledger.jsonl}}}}
rollout: {{n: {SAMPLES}, max_response_tokens: 54, batch_size: 4, max_engine_restarts: 50}}
trainer:
  total_steps: {STEPS}
  prompts_per_step: {PROMPTS}
  max_staleness: {STALENESS}
  save_freq: 3
  optimizer: {{lr: 1.0e-3}}
""")
    return config


def lines(file: Path) -> list[dict[str, Any]]:
    """All whole lines; the last one may be in the making."""
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def check(folder: Path) -> None:
    """Of what was done again after a kill, the last time counts: the time before is not in the weights."""
    last = {line["step"]: line for line in lines(folder / "ledger.jsonl")}
    assert sorted(last) == list(range(1, STEPS + 1))
    trained = Counter(group for line in last.values() for group in line["groups"])
    assert trained == dict.fromkeys(range(STEPS * PROMPTS), SAMPLES)
    assert all(step - 1 - version <= STALENESS for step, line in last.items() for version in line["versions"])
    rows = [row for row in lines(folder / "stale" / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["data/samples_consumed"] == PROMPTS * SAMPLES for row in rows)
    assert max(row["staleness/max"] for row in rows) >= 1, "the run was synchronous"


@pytest.mark.long
@pytest.mark.parametrize("victim", ["ray::EngineActor", "ray::TrainerActor", ""])
def test_every_group_is_trained_once_whatever_is_killed(
    pentad: Pentad, quickstart: Path, tmp_path: Path, victim: str
) -> None:
    config = configure(tmp_path, quickstart)
    command = pentad("train", str(config))
    ledger = tmp_path / "ledger.jsonl"

    def reach(step: int) -> None:
        command.wait_until(
            lambda: ledger.exists() and max(line["step"] for line in lines(ledger)) >= step, f"step {step}"
        )

    reach(2)
    if victim:
        command.worker(victim).kill()
    if victim == "ray::TrainerActor":
        assert command.ends_within(200) == 1, command.stdout
    else:
        reach(8)
        command.process.send_signal(signal.SIGKILL)
        command.ends_within(120)
        assert victim not in ("ray::EngineActor",) or "started again in" in command.stdout
    again = pentad("train", str(config))
    assert again.ends_within(600) == 0, again.stderr
    check(tmp_path)
