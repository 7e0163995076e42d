"""Algorithms of the user's in the loop: no change is needed for them, and wrong ones are refused."""

from pathlib import Path

import pytest
import torch
from loop_world import World

from pentad.algorithms.make import make_algorithm
from pentad.errors import UserError

ALGORITHM = """
import torch

from pentad.algorithms.protocol import Mean
from pentad.algorithms.reduction import spread_over_tokens


class Loss:
    reads = frozenset({"advantages"})
    differentiates_entropy = True

    def __init__(self, entropy):
        self.entropy = entropy

    def denominator(self, minibatch):
        return float(minibatch.loss_mask.sum())

    def __call__(self, outputs, microbatch):
        bonus = self.entropy * outputs.entropies
        loss = -(outputs.logprobs * microbatch.per_token["advantages"] + bonus) * microbatch.loss_mask
        return loss.sum(), {"train/bonus": Mean(bonus.detach().sum(), microbatch.loss_mask.sum())}


class Reinforce:
    columns = frozenset()

    def __init__(self, *, entropy=0.0, columns=()):
        self.loss = Loss(entropy)

    def admit(self, group):
        return len({trajectory.reward for trajectory in group}) > 1

    def credit(self, batch):
        rewards = batch.per_sequence["rewards"]
        return batch.with_per_token("advantages", spread_over_tokens(rewards - rewards.mean(), batch))

    def losses(self):
        return {"policy": self.loss}


class WrongColumns(Reinforce):
    columns = {"rewards"}


class WrongRoles(Reinforce):
    def losses(self):
        return {"critic": self.loss}


class Untrained(Reinforce):
    columns = {"values"}


class ActorCritic(Reinforce):
    columns = {"old_logprobs", "values"}

    def credit(self, batch):
        return batch.with_per_token("advantages", 1.0 - batch.per_token["values"])

    def losses(self):
        return {"policy": self.loss, "critic": self.loss}
"""


def test_an_algorithm_of_the_users_needs_no_change_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pentad.config.schema.algorithms import CustomSettings

    (tmp_path / "reinforce_here.py").write_text(ALGORITHM)
    monkeypatch.chdir(tmp_path)
    settings = CustomSettings(name="reinforce_here.py:Reinforce", options={"entropy": 0.5})
    assert settings.columns == frozenset() and settings.roles == {"policy"}
    world = World(settings, steps=2)
    world.run()
    assert "score policy" not in world.events
    for part in world.policy.trained:
        assert part.per_token["advantages"][part.loss_mask].unique().tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_a_critic_gives_values_and_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pentad.config.schema.algorithms import CustomSettings

    (tmp_path / "actor_critic_here.py").write_text(ALGORITHM)
    monkeypatch.chdir(tmp_path)
    settings = CustomSettings(name="actor_critic_here.py:ActorCritic", optimizer_steps=2)
    assert settings.roles == {"policy", "critic"}
    world = World(settings, steps=3, critic_warmup=1)
    world.run()
    warmup = ["sleep", "score policy", "value critic", "train critic", "train critic", "publish 2"]
    step = ["sleep", "score policy", "value critic", *["train policy", "train critic"] * 2]
    assert world.events == ["publish 0", *warmup, *step, "publish 4", *step, "publish 6"]
    # The critic as it was before the step, which it saw two optimizer steps ago; a step later it has seen four.
    for number, part in enumerate(world.policy.trained):
        values = part.per_token["values"][part.loss_mask]
        assert torch.equal(values, torch.full_like(values, 0.25 - 0.125 * (2 if number < 2 else 4)))
    metrics = [row for _, row in world.journal.written]
    assert "train/lr" not in metrics[0] and metrics[0]["data/samples_consumed"] == 12
    assert all(row["critic/lr"] == 0.1 and row["critic/loss"] == 0 for row in metrics)
    assert all(row["train/lr"] == 0.1 for row in metrics[1:])


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"name": "reinforce_bad.py:Missing"}, "has no 'Missing'"),
        ({"name": "nowhere.py:Reinforce"}, "there is no file"),
        ({"options": {"entropi": 1}}, "could not be made with algorithm.options"),
        ({"name": "reinforce_bad.py:Loss"}, "has no method admit, credit, losses"),
        ({"name": "reinforce_bad.py:WrongColumns"}, "must be a set of some of old_logprobs, ref_logprobs, values"),
        ({"name": "reinforce_bad.py:WrongRoles"}, "not a mapping of the one role"),
        ({"name": "reinforce_bad.py:Untrained"}, "not a mapping of the roles that are trained, policy and critic"),
    ],
)
def test_a_wrong_algorithm_is_refused_by_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change, cause):
    from pentad.config.schema.algorithms import CustomSettings

    (tmp_path / "reinforce_bad.py").write_text(ALGORITHM)
    monkeypatch.chdir(tmp_path)
    settings = CustomSettings(**{"name": "reinforce_bad.py:Reinforce", **change})
    with pytest.raises(UserError) as refused:
        make_algorithm(settings)
    assert cause in refused.value.cause
