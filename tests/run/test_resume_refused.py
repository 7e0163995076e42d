"""What a run goes on from, and what it refuses: damaged checkpoints, those of other runs, wrong paths."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Pentad = Callable[..., Command]


def configure(folder: Path, data: Path) -> Path:
    config = folder / "sft.yaml"
    config.write_text(f"""
experiment: {{name: saved, dir: run}}
allocation: megatron:d1
model: {{path: {data}/model}}
algorithm: {{name: sft}}
data: {{train: {data}/sft.jsonl, template: text}}
trainer: {{total_steps: 4, prompts_per_step: 8, save_freq: 2, optimizer: {{lr: 1.0e-3}}}}
""")
    return config


def said(command: Command, code: int) -> str:
    assert command.ends_within(300) == code, command.stdout + command.stderr
    assert "Traceback" not in command.stderr
    return command.stdout + command.stderr


def test_a_run_goes_on_from_what_is_sound_and_its_own(pentad: Pentad, quickstart: Path, tmp_path: Path) -> None:
    config = str(configure(tmp_path, quickstart))
    said(pentad("train", config), 0)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
    before = (tmp_path / "run" / "metrics.jsonl").read_text()

    # Nothing is left to do.
    assert "has finished its 4 steps; nothing is left to do" in said(pentad("train", config), 0)
    # Other data, another model, another format, a path that is not there: nothing is touched.
    rows = (quickstart / "sft.jsonl").read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("\n".join(rows[:100]) + "\n")
    refused = said(pentad("train", config, "trainer.total_steps=6", f"data.train={tmp_path}/fewer.jsonl"), 2)
    assert "is of another run" in refused and f"rows of data.train: {len(rows)} -> 100" in refused
    other = tmp_path / "other"
    other.mkdir()
    for file in (quickstart / "model").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"rms_norm_eps": 0.5}))
    refused = said(pentad("train", config, "trainer.total_steps=6", f"model.path={other}"), 2)
    assert "is of another run" in refused and f"model: rms_norm_eps: {values['rms_norm_eps']} -> 0.5" in refused
    refused = said(pentad("train", config, "trainer.resume_mode=nowhere"), 2)
    assert "there is no checkpoint or run nowhere" in refused
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before

    # A damaged one is named, and the one before it taken; the two steps after it are recorded once.
    damaged = checkpoints / "step-00000004" / "policy" / "rank-00000.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    text = said(pentad("train", config, "trainer.total_steps=6"), 0)
    assert "step-00000004 is damaged: policy/rank-00000.safetensors is not what was written" in text
    assert "going on after step 2" in text and "2 later steps are done again" in text
    assert "changed since: trainer.total_steps: 4 -> 6" in text
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:2] == before.splitlines()[:2]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    # Which now are 4 (again) and 6; the damaged one is beside them.
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-00000004",
        "step-00000004.old-1",
        "step-00000006",
    ]


def test_a_failed_run_starts_again_by_itself(pentad: Pentad, quickstart: Path, tmp_path: Path) -> None:
    config = str(configure(tmp_path, quickstart))
    settings = ("trainer.total_steps=60", "trainer.save_freq=1", "trainer.max_restarts=2")
    command = pentad("train", config, *settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    for number, steps in enumerate((2, 10)):
        command.wait_until(
            lambda steps=steps: metrics.exists() and len(metrics.read_text().splitlines()) >= steps, "step"
        )
        command.worker("ray::TrainerActor").kill()
        command.wait_until(lambda number=number: command.stdout.count("starting again") == number + 1, "restart")
    text = said(command, 0)
    assert text.count("going on after step") == 2
    failures = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == 2 and all("trainer rank 0 failed during" in failure["cause"] for failure in failures)
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 61))
    whole = pentad("train", config, "trainer.total_steps=60", "experiment.dir=whole")
    said(whole, 0)
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]


def test_a_disk_that_is_full_while_saving_ends_nothing(pentad: Pentad, quickstart: Path, tmp_path: Path) -> None:
    """The directory of the checkpoints becomes a file after the first one, in which nothing can be made."""
    config = str(configure(tmp_path, quickstart))
    checkpoints = tmp_path / "run" / "checkpoints"
    command = pentad("train", config, "trainer.total_steps=40", "trainer.save_freq=10")
    command.wait_until((checkpoints / "step-00000010").exists, "checkpoint")
    checkpoints.rename(tmp_path / "aside")
    checkpoints.write_text("not a directory")
    text = said(command, 0)
    assert "could not be written: " in text and "the last one is that of step" in text
    assert (tmp_path / "aside" / "step-00000010" / "manifest.json").exists()
