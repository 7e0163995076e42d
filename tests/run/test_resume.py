"""A run that is killed goes on as if nothing had happened.

The run without kill is the oracle: metrics, every sampled token, and the exported weights are the same bit for bit.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Command
from quickstart import REPOSITORY

from pentad.record.spans import read_spans

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS, SAVED = 12, 5
RECORDER = REPOSITORY / "tests" / "outside" / "recorder.py"
# What says how fast a machine is is not part of a run's result.
UNCOMPARED = ("time/", "perf/", "save/", "util/")
Pentad = Callable[..., Command]


# Depends on every character, so that groups hold different rewards.
REWARD = """
def score(response):
    return sum((place + 1) * ord(character) for place, character in enumerate(response)) % 11 / 10
"""


def configure(folder: Path, data: Path, allocation: str, name: str) -> Path:
    recording = folder / f"recording-{name}"
    recording.mkdir()
    (folder / "scoring.py").write_text(REWARD)
    config = folder / f"{name}.yaml"
    config.write_text(f"""
experiment: {{name: {name}, dir: {name}}}
allocation: "{allocation}"
model: {{path: {data}/model}}
data: {{train: {data}/train.jsonl, eval: {{sort: {data}/eval.jsonl}}, eval_limit: 12, template: text}}
reward: {{name: "scoring.py:score"}}
algorithm: {{kl_coef: 0.01, optimizer_steps: 2}}
rollout:
  n: 4
  max_response_tokens: 8
  engine: {RECORDER}:RecordingEngine
  engine_options: {{folder: {recording}}}
trainer:
  total_steps: {STEPS}
  prompts_per_step: 8
  save_freq: {SAVED}
  test_freq: 4
  optimizer: {{lr: 1.0e-3}}
  schedule: {{name: cosine, warmup_steps: 3}}
""")
    return config


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if not name.startswith(UNCOMPARED)} for row in rows]


def sampled(folder: Path) -> dict[tuple[str, int], set[tuple[int, ...]]]:
    """The responses that were trained on, by request and sample; of what was sampled again, all."""
    found: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for file in folder.glob("*.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            if not row["request"].startswith("eval-"):
                found.setdefault((row["request"], row["sample"]), set()).add(tuple(row["response"]))
    return found


def check_equal(folder: Path, straight: str, resumed: str) -> None:
    assert all(row["train/grad_norm"] > 0 for row in metrics(folder / straight) if "train/grad_norm" in row)
    assert metrics(folder / resumed) == metrics(folder / straight)
    assert (folder / resumed / "samples.jsonl").read_text() == (folder / straight / "samples.jsonl").read_text()
    once, again = (sampled(folder / f"recording-{name}") for name in (straight, resumed))
    assert once == again and len(once) == STEPS * 8 * 4
    weights = [(folder / name / "model" / "model.safetensors").read_bytes() for name in (straight, resumed)]
    assert weights[0] == weights[1]


def check_spans(run: Path, steps: list[int]) -> None:
    """Each step once, with what the processes did in it, and the shares that follow from that."""
    rows = {row.step: row for row in read_spans(run / "spans.jsonl", []) if not row.after}
    assert list(rows) == steps
    written = {row["step"]: row for row in map(json.loads, (run / "metrics.jsonl").open()) if "time/step" in row}
    for step, row in rows.items():
        phases: dict[str, set[str]] = {}
        for lane in row.lanes:
            phases.setdefault(lane.who, set()).update(name for name, _, _ in lane.parts)
        assert {"generation", "weight synchronisation"} <= phases["rollout engine"]
        assert {"log-probs", "reference log-probs", "training", "weight synchronisation"} <= phases["trainer rank"]
        assert phases["rewards"] == {"rewards"}
        shares = written[step]
        assert row.seconds == pytest.approx(shares["time/step"], abs=0.05)
        assert shares["util/engines"] > 0 and shares["util/trainer"] > 0
        # One engine, and all ranks together: engines and trainer take turns.
        assert shares["util/both"] == pytest.approx(0, abs=0.01)
        assert shares["util/engines"] + shares["util/trainer"] + shares["util/neither"] <= 1.01


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "allocation"),
    [
        ("mixture", "hf:d1+megatron:(attn:d2|ffn:d1e2)"),
        *[("dense", f"hf:d1+megatron:{layout}") for layout in ("t2", "p2", "d2")],
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    kind: str, allocation: str, pentad: Pentad, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = request.getfixturevalue("mixture" if kind == "mixture" else "quickstart")
    configs = {name: configure(tmp_path, data, allocation, name) for name in ("straight", "killed")}
    straight = pentad("train", str(configs["straight"]))
    assert straight.ends_within(600) == 0, straight.stderr
    command = pentad("train", str(configs["killed"]))
    saved = tmp_path / "killed" / "checkpoints" / f"step-{SAVED:08d}"
    command.wait_until(saved.exists, "checkpoint")
    command.process.send_signal(signal.SIGKILL)
    command.ends_within(120)
    again = pentad("train", str(configs["killed"]))
    assert again.ends_within(600) == 0, again.stderr
    assert "going on after step" in again.stdout
    assert "changed since" not in again.stdout
    check_equal(tmp_path, "straight", "killed")


def test_sigterm_saves_and_the_same_command_goes_on(pentad: Pentad, quickstart: Path, tmp_path: Path) -> None:
    """At two ranks; the next start has another layout and learning rate, which it says."""
    config = configure(tmp_path, quickstart, "hf:d1+megatron:d2", "stopped")
    command = pentad("train", str(config), "trainer.save_freq=1000", "trainer.total_steps=100")
    command.wait_until(lambda: (tmp_path / "stopped" / "metrics.jsonl").exists(), "step")
    command.process.send_signal(signal.SIGTERM)
    assert command.ends_within(150) == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM" in command.stderr and "to go on: start the same command again" in command.stderr
    (saved,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert metrics(tmp_path / "stopped")[-1]["step"] == step
    changed = ("allocation=hf:d1+megatron:p2", f"trainer.total_steps={step + 1}", "trainer.optimizer.lr=1.0e-4")
    again = pentad("train", str(config), *changed)
    assert again.ends_within(600) == 0, again.stderr
    assert f"going on after step {step}, from" in again.stdout
    assert "changed since: allocation: hf:d1+megatron:d2 -> hf:d1+megatron:p2" in again.stdout
    assert "changed since: trainer.optimizer.lr: 0.001 -> 0.0001" in again.stdout
    steps = [row["step"] for row in metrics(tmp_path / "stopped") if "train/loss" in row]
    assert steps == list(range(1, step + 2))
    check_spans(tmp_path / "stopped", steps)
    finished = pentad("train", str(config), *changed)
    assert finished.ends_within(60) == 0
    assert f"has finished its {step + 1} steps; nothing is left to do" in finished.stdout
    other = pentad("train", str(config), *changed[:2], "trainer.optimizer.lr=1.0e-5")
    assert other.ends_within(60) == 2
    assert "already holds a run that has finished" in other.stderr and "with other settings" in other.stderr
