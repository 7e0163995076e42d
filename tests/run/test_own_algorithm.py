"""A real run with an algorithm and a reward of the user's, in files beside it. No file of Pentad knows of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command

_ALGORITHM = """
from pentad.algorithms.protocol import Mean
from pentad.algorithms.reduction import spread_over_tokens


class Loss:
    reads = frozenset({"advantages"})
    differentiates_entropy = True

    def __init__(self, bonus):
        self.bonus = bonus

    def denominator(self, minibatch):
        return max(1.0, float(minibatch.loss_mask.sum()))

    def __call__(self, outputs, microbatch):
        mask = microbatch.loss_mask
        gain = outputs.logprobs * microbatch.per_token["advantages"] + self.bonus * outputs.entropies
        return -(gain * mask).sum(), {"train/gain": Mean((gain * mask).detach().sum(), mask.sum())}


class Reinforce:
    columns = frozenset()

    def __init__(self, *, bonus=0.0):
        self.bonus = bonus

    def admit(self, group):
        return True

    def credit(self, batch):
        rewards, scored = batch.per_sequence["rewards"], batch.per_sequence["scored"]
        advantages = (rewards - rewards[scored].mean()) * scored
        return batch.with_per_token("advantages", spread_over_tokens(advantages, batch))

    def losses(self):
        return {"policy": Loss(self.bonus)}
"""
_REWARD = """
def score(response, ground_truth):
    return sum(one == other for one, other in zip(response, ground_truth)) / 4
"""


@pytest.mark.slow
def test_reinforce_with_a_baseline(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    # A name that the standard library has, too.
    (tmp_path / "mine" / "random.py").write_text(_ALGORITHM)
    (tmp_path / "mine" / "rewards.py").write_text(_REWARD)
    (tmp_path / "own.yaml").write_text(f"""
experiment: {{name: own, dir: run}}
allocation: hf:d1+megatron:t2
model: {{path: {quickstart}/model}}
data: {{train: {quickstart}/train.jsonl, template: text}}
reward: {{name: "mine/rewards.py:score"}}
algorithm: {{name: "mine/random.py:Reinforce", options: {{bonus: 0.01}}, optimizer_steps: 2}}
rollout: {{n: 4, max_response_tokens: 6}}
trainer: {{total_steps: 2, prompts_per_step: 4, optimizer: {{lr: 1.0e-3}}, export: false}}
""")
    command = pentad("train", str(tmp_path / "own.yaml"))
    assert command.ends_within(240) == 0, command.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["data/samples_consumed"] == 16
        assert row["train/grad_norm"] > 0
        # The metric of the loss is minus the loss: both are means over the same tokens.
        assert row["train/gain"] == pytest.approx(-row["train/loss"], abs=1e-6)
