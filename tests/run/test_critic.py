"""Real runs with a critic: it learns, is saved and gone on with, and is exported as transformers reads it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from safetensors.torch import load_file

_ALGORITHM = """
from pentad.algorithms.protocol import Mean
from pentad.algorithms.reduction import spread_over_tokens


class Loss:
    differentiates_entropy = False

    def __init__(self, *reads):
        self.reads = frozenset(reads)

    def denominator(self, minibatch):
        return max(1.0, float(minibatch.loss_mask.sum()))


class Policy(Loss):
    def __call__(self, outputs, microbatch):
        gain = (outputs.logprobs - microbatch.per_token["old_logprobs"]).exp() * microbatch.per_token["advantages"]
        return -(gain * microbatch.loss_mask).sum(), {}


class Critic(Loss):
    def __call__(self, outputs, microbatch):
        mask = microbatch.loss_mask
        error = (outputs.values - microbatch.per_token["returns"]).square() * mask
        old = (microbatch.per_token["values"] * mask).abs().sum()
        metrics = {"value/error": Mean(error.detach().sum(), mask.sum()), "value/old": Mean(old, mask.sum())}
        return error.sum() / 2, metrics


class ActorCritic:
    columns = frozenset({"old_logprobs", "values"})

    def admit(self, group):
        return True

    def credit(self, batch):
        returns = spread_over_tokens(batch.per_sequence["rewards"], batch) * batch.loss_mask
        batch = batch.with_per_token("returns", returns)
        return batch.with_per_token("advantages", (returns - batch.per_token["values"]) * batch.loss_mask)

    def losses(self):
        return {"policy": Policy("advantages", "old_logprobs"), "critic": Critic("returns", "values")}
"""
_REWARD = """
def score(response):
    return sum((place + 1) * ord(character) for place, character in enumerate(response)) % 11 / 10
"""
Pentad = Callable[..., Command]


def configure(folder: Path, data: Path, allocation: str, name: str, steps: int, save: int, more: str = "") -> Path:
    (folder / "scoring.py").write_text(_REWARD)
    (folder / "mine.py").write_text(_ALGORITHM)
    config = folder / f"{name}.yaml"
    config.write_text(f"""
experiment: {{name: {name}, dir: {name}}}
allocation: "{allocation}"
model: {{path: {data}/model}}
data: {{train: {data}/train.jsonl, template: text}}
reward: {{name: "scoring.py:score"}}
algorithm: {{name: "mine.py:ActorCritic", optimizer_steps: 2}}
critic: {{warmup_steps: 1, export: true, optimizer: {{lr: 5.0e-3}}, schedule: {{name: linear, warmup_steps: 2}}{more}}}
rollout: {{n: 4, max_response_tokens: 8}}
trainer:
  total_steps: {steps}
  prompts_per_step: 8
  save_freq: {save}
  optimizer: {{lr: 1.0e-3}}
  schedule: {{name: cosine, warmup_steps: 2}}
""")
    return config


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    slow = ("time/", "perf/", "save/")
    return [{name: value for name, value in row.items() if not name.startswith(slow)} for row in rows]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_a_run_with_a_critic(quickstart: Path, pentad: Pentad, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    config = configure(tmp_path, quickstart, "hf:d1+megatron:t2", "first", steps=4, save=2)
    command = pentad("train", str(config))
    assert command.ends_within(300) == 0, command.stderr
    run = tmp_path / "first"
    rows = rows_of(run)
    assert rows[0]["value/old"] == 0, "a head of zeros gives zeros"
    assert "train/loss" not in rows[0], "the policy was trained in the critic's warmup"
    for row in rows:
        assert row["data/samples_consumed"] == 32 and row["critic/grad_norm"] > 0
        assert row["critic/loss"] == pytest.approx(row["value/error"] / 2, rel=1e-5)
    # Eight optimizer steps, of which two are warmup; zero is reached one step after the last.
    assert [row["critic/lr"] for row in rows] == pytest.approx([5e-3 * part / 7 for part in (7, 5, 3, 1)], rel=1e-5)
    assert all(row["train/grad_norm"] > 0 and row["value/old"] > 0 for row in rows[1:])
    assert rows[-1]["value/error"] < rows[0]["value/error"]

    critic, told = AutoModelForTokenClassification.from_pretrained(run / "critic", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    held = tensors(run / "critic")
    assert critic.score.bias is None and torch.equal(critic.score.weight.detach(), held["score.weight"])
    assert held["score.weight"].dtype == torch.float32 and bool(held["score.weight"].any())
    assert "lm_head.weight" not in held
    saved = run / "checkpoints" / "step-00000004"
    assert json.loads((saved / "manifest.json").read_text())["manifest"]["roles"] == ["policy", "critic"]


@pytest.mark.slow
@pytest.mark.long
def test_a_critic_begins_with_another_run_s(quickstart: Path, pentad: Pentad, tmp_path: Path) -> None:
    """That of a checkpoint, or what was exported: equal weights, which a rate of 0 keeps."""
    config = configure(tmp_path, quickstart, "hf:d1+megatron:t2", "first", steps=2, save=2)
    command = pentad("train", str(config))
    assert command.ends_within(300) == 0, command.stderr
    run = tmp_path / "first"
    saved = run / "checkpoints" / "step-00000002"
    for name, source in (("checkpoint", saved), ("exported", run / "critic")):
        more = f", model: {source}"
        config = configure(tmp_path, quickstart, "hf:d1+megatron:d2", name, steps=2, save=0, more=more)
        command = pentad("train", str(config), "critic.optimizer.lr=0.0")
        assert command.ends_within(300) == 0, command.stderr
        assert "critic.optimizer.lr = 0" in command.stdout
        assert equal(tmp_path / name / "critic", run / "critic")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "allocation"),
    [("dense", "hf:d1+megatron:t2"), ("dense", "hf:d1+megatron:p2"), ("mixture", "hf:d1+megatron:(attn:d2|ffn:d1e2)")],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    kind: str, allocation: str, pentad: Pentad, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = request.getfixturevalue("mixture" if kind == "mixture" else "quickstart")
    configs = [configure(tmp_path, data, allocation, name, steps=8, save=3) for name in ("straight", "killed")]
    straight = pentad("train", str(configs[0]))
    assert straight.ends_within(600) == 0, straight.stderr
    command = pentad("train", str(configs[1]))
    command.wait_until((tmp_path / "killed" / "checkpoints" / "step-00000003").exists, "checkpoint")
    command.process.send_signal(signal.SIGKILL)
    command.ends_within(120)
    again = pentad("train", str(configs[1]))
    assert again.ends_within(600) == 0, again.stderr
    assert "going on after step" in again.stdout and "changed since" not in again.stdout
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "straight")
    for part in ("model", "critic"):
        assert equal(tmp_path / "killed" / part, tmp_path / "straight" / part)
