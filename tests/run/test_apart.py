"""Real runs with models on devices of their own: the same numbers as together, whatever the layouts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from safetensors.torch import load_file

_REWARD = """
def score(response):
    return sum((place + 1) * ord(character) for place, character in enumerate(response)) % 11 / 10
"""
Pentad = Callable[..., Command]

# Where the models of a run are, of which each number is as on one device.
CRITIC_APART = "hf:d1+megatron:d1+megatron[critic]:d1"
BOTH_APART = "hf:d1+megatron[actor]:t2+megatron[ref]:d1+megatron[critic]:p2"


def configure(folder: Path, data: Path, allocation: str, name: str, steps: int, save: int = 0) -> Path:
    (folder / "scoring.py").write_text(_REWARD)
    config = folder / f"{name}.yaml"
    config.write_text(f"""
experiment: {{name: {name}, dir: {name}}}
allocation: "{allocation}"
model: {{path: {data}/model}}
data: {{train: {data}/train.jsonl, template: text}}
reward: {{name: "scoring.py:score"}}
algorithm: {{name: ppo, optimizer_steps: 2, kl_coef: 0.05}}
critic: {{export: true, optimizer: {{lr: 5.0e-3}}}}
rollout: {{n: 2, max_response_tokens: 6}}
trainer:
  total_steps: {steps}
  prompts_per_step: 8
  save_freq: {save}
  optimizer: {{lr: 1.0e-3}}
""")
    return config


def rows_of(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def assert_close(run: Path, other: Path) -> None:
    """All numbers that are computed are equal up to rounding."""
    left, right = rows_of(run), rows_of(other)
    assert len(left) == len(right) > 0
    for mine, theirs in zip(left, right, strict=True):
        names = {
            name for name in mine.keys() | theirs.keys() if not name.startswith(("time/", "perf/", "save/", "util/"))
        }
        assert {"critic/loss", "critic/grad_norm", "train/grad_norm", "reward/mean"} <= names
        for name in names:
            assert mine[name] == pytest.approx(theirs[name], rel=2e-3, abs=2e-5), (name, mine["step"])


def train(pentad: Pentad, config: Path) -> str:
    command = pentad("train", str(config))
    assert command.ends_within(300) == 0, command.stdout + command.stderr
    return command.stdout


@pytest.mark.slow
def test_a_critic_on_a_device_of_its_own(quickstart: Path, pentad: Pentad, tmp_path: Path) -> None:
    train(pentad, configure(tmp_path, quickstart, "hf:d1+megatron:d1", "together", steps=2))
    said = train(pentad, configure(tmp_path, quickstart, CRITIC_APART, "apart", steps=2))
    assert_close(tmp_path / "apart", tmp_path / "together")
    assert "devices: rollout 0; policy, reference 1; critic 2" in said
    last = rows_of(tmp_path / "apart")[-1]
    assert last["util/critic"] > 0
    # Both models are trained at the same time.
    spans = [json.loads(line) for line in (tmp_path / "apart" / "spans.jsonl").read_text().splitlines()]
    lanes = {lane["who"]: lane["spans"] for lane in spans[-1]["lanes"]}
    begun = [begin for phase, begin, _ in lanes["critic rank"] if phase == "training of the critic"]
    ended = [end for phase, _, end in lanes["trainer rank"] if phase == "training"]
    assert min(begun) < min(ended), lanes


@pytest.mark.slow
@pytest.mark.long
def test_both_apart_and_going_on_in_other_arrangements(quickstart: Path, pentad: Pentad, tmp_path: Path) -> None:
    """Each part of a run on another arrangement gives the numbers, and the models, of the whole run on one device."""
    train(pentad, configure(tmp_path, quickstart, "hf:d1+megatron:d1", "together", steps=6, save=2))
    said = train(pentad, configure(tmp_path, quickstart, BOTH_APART, "parts", steps=2, save=2))
    assert "devices: rollout 0; policy 1-2; reference 3; critic 4-5" in said
    saved = tmp_path / "parts" / "checkpoints" / "step-00000002"
    assert [len(list((saved / role).glob("*.safetensors"))) for role in ("policy", "critic")] == [2, 2]
    assert not (saved / "reference").exists()
    # Critic and reference in the same ranks, apart from the policy; then all together, in its two ranks.
    shared = "hf:d1+megatron:d1+megatron[critic]:t2|megatron[ref]:t2"
    for steps, allocation in ((4, shared), (6, "hf:d2|megatron:t2|megatron[critic]:t2")):
        said = train(pentad, configure(tmp_path, quickstart, allocation, "parts", steps=steps, save=2))
        assert f"going on after step {steps - 2}" in said and "allocation: " in said
    assert_close(tmp_path / "parts", tmp_path / "together")
    for part in ("model", "critic"):
        left, right = (load_file(tmp_path / run / part / "model.safetensors") for run in ("parts", "together"))
        assert left.keys() == right.keys()
        for name in left:
            assert torch.allclose(left[name], right[name], rtol=0, atol=2e-3), name


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_is_named_while_others_work(
    victim: int, quickstart: Path, pentad: Pentad, tmp_path: Path
) -> None:
    command = pentad("train", str(configure(tmp_path, quickstart, CRITIC_APART, "killed", steps=1000)))
    command.wait_until(lambda: len(rows_of(tmp_path / "killed")) > 0, "the first step")
    ranks = [process for process in command.processes() if "ray::TrainerActor" in " ".join(process.cmdline())]
    assert len(ranks) == 2
    process = sorted(ranks, key=lambda one: one.pid)[victim]
    process.kill()
    assert command.ends_within(60) == 1
    assert "rank 0 failed during" in command.stderr and "its process died" in command.stderr
    assert f"{process.pid}.err" in command.stderr
