"""A rollout engine that is lost is replaced, and the run goes on as if nothing had happened.

The run that loses none is the oracle.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FRAGILE = Path(__file__).parents[1] / "outside" / "fragile.py"
# Depends on every character, so that groups hold different rewards.
REWARD = """
def score(response):
    return sum((place + 1) * ord(character) for place, character in enumerate(response)) % 11 / 10
"""


def configure(folder: Path, data: Path) -> Path:
    (folder / "scoring.py").write_text(REWARD)
    config = folder / "run.yaml"
    config.write_text(f"""
experiment: {{name: lost}}
allocation: hf:d2+megatron:d1
model: {{path: {data}/model}}
data: {{train: {data}/train.jsonl, template: text, max_prompt_tokens: 9}}
reward: {{name: "scoring.py:score"}}
rollout: {{n: 4, max_response_tokens: 54, batch_size: 4, max_engine_restarts: 50}}
trainer: {{total_steps: 4, prompts_per_step: 8, optimizer: {{lr: 1.0e-3}}}}
""")
    return config


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    # Requests that are made again are decoded in other company, which rounds their log-probs otherwise.
    uncompared = ("time/", "perf/", "save/", "util/", "rollout/kl", "rollout/logprob_diff")
    return [{name: value for name, value in row.items() if not name.startswith(uncompared)} for row in rows]


@pytest.mark.long
def test_killed_engines_are_replaced_and_nothing_is_lost(
    pentad: Callable[..., Command], quickstart: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path, quickstart)
    whole = pentad("train", str(config), "experiment.dir=whole")
    assert whole.ends_within(600) == 0, whole.stderr
    command = pentad("train", str(config), "experiment.dir=lost", "trainer.save_freq=0")
    for steps in (1, 2):
        command.wait_until(lambda steps=steps: len(_rows(tmp_path / "lost")) >= steps, f"step {steps}")
        command.worker("ray::EngineActor").kill()
    assert command.ends_within(900) == 0, command.stderr
    assert command.stdout.count("started again in") >= 2, command.stdout
    assert metrics(tmp_path / "lost") == metrics(tmp_path / "whole")


def test_an_engine_that_says_that_it_is_lost_is_replaced(
    pentad: Callable[..., Command], quickstart: Path, tmp_path: Path
) -> None:
    """As a vLLM engine does whose core was killed: its own process lives."""
    config = configure(tmp_path, quickstart)
    engine = [f"rollout.engine={FRAGILE}:Fragile", f"rollout.engine_options={{after: 9, mark: {tmp_path}/mark}}"]
    command = pentad("train", str(config), "trainer.total_steps=1", "allocation=hf:d1+megatron:d1", *engine)
    assert command.ends_within(300) == 0, command.stderr
    assert "its core died; rollout engine 0 started again in" in command.stdout
    (row,) = _rows(tmp_path / "runs" / "lost")
    assert json.loads(row)["data/samples_consumed"] == 32


@pytest.mark.long
def test_an_engine_that_is_lost_too_often_ends_the_run(
    pentad: Callable[..., Command], quickstart: Path, tmp_path: Path
) -> None:
    command = pentad("train", str(configure(tmp_path, quickstart)), "rollout.max_engine_restarts=0")
    command.wait_for("weights go to the engines by shared")
    command.worker("ray::EngineActor").kill()
    assert command.ends_within(300) == 1
    assert "its process died" in command.stderr


def _rows(run: Path) -> list[str]:
    file = run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []
