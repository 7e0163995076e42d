"""Metrics of real runs, of ten steps that cannot learn and of runs that learn (recorded_runs.json), give the signs."""

import json
from pathlib import Path
from typing import Any

import pytest

from pentad.config.schema.run import RunSettings
from pentad.loops.watch import SIGNS, LearningWatch

RECORDED: dict[str, list[dict[str, float]]] = json.loads(Path(__file__).with_name("recorded_runs.json").read_text())
# A value that was not finite is recorded as null.
for _row in (row for rows in RECORDED.values() for row in rows):
    _row.update({name: float("nan") for name, value in _row.items() if value is None})

# What of its settings the text of a sign reads.
SETTINGS: dict[str, dict[str, Any]] = {
    "all truncated": {"rollout": {"n": 8, "max_response_tokens": 1}},
    "learning rate 0": {"trainer": {"total_steps": 10, "optimizer": {"lr": 0.0}}},
    "temperature near 0": {"rollout": {"temperature": 0.01}},
    "every update clipped": {"algorithm": {"name": "grpo", "optimizer_steps": 8}},
    "no trainable tokens": {"algorithm": {"name": "grpo", "overlong_filter": True}},
    "healthy sft": {"algorithm": {"name": "sft"}},
}
# Step and name of each sign that is told of a run, and a part of the text of the first.
TOLD: dict[str, tuple[list[tuple[int, str]], str]] = {
    "constant reward": ([(5, "equal rewards")], "every response has the same reward, 0.5"),
    "all wrong": ([(5, "equal rewards")], "no response is rewarded: each has the reward 0"),
    "wrong column": ([(5, "equal rewards")], "data.ground_truth_column"),
    "all truncated": ([(5, "truncated")], "rollout.max_response_tokens = 1"),
    "learning rate 0": ([(3, "learning rate")], "look at trainer.optimizer.lr"),
    "temperature near 0": ([(5, "truncated"), (5, "equal rewards"), (5, "no entropy")], ""),
    "every update skipped": ([(3, "skipped updates")], "algorithm.reward_clip"),
    "every update clipped": ([(5, "clipped")], "of the tokens are clipped"),
    "no trainable tokens": ([(3, "nothing trained"), (5, "truncated"), (5, "equal rewards")], "overlong_filter"),
    "healthy": ([], ""),
    "healthy sft": ([], ""),
}


def settings(changes: dict[str, Any]) -> RunSettings:
    whole = {
        "experiment": {"name": "x"},
        "model": {"path": "m"},
        "data": {"train": "x.jsonl"},
        "trainer": {"total_steps": 40},
        "algorithm": {"name": "grpo"},
    }
    return RunSettings.model_validate(whole | changes)


def seen(watch: LearningWatch, rows: list[dict[str, float]], first: int = 1) -> list[tuple[int, str, str]]:
    """All that is told of steps."""
    return [(step, *told) for step, row in enumerate(rows, first) for told in watch.see(step, row)]


@pytest.mark.parametrize("name", TOLD)
def test_signs_of_recorded_runs(name: str) -> None:
    told = seen(LearningWatch(settings(SETTINGS.get(name, {}))), RECORDED[name])
    signs, text = TOLD[name]
    assert sorted((step, sign) for step, sign, _ in told) == sorted(signs)
    assert all(line.startswith("over the last ") for _, _, line in told)
    assert not told or text in told[0][2]


def test_every_recorded_run_is_looked_at() -> None:
    assert TOLD.keys() == RECORDED.keys()


@pytest.mark.parametrize("name", [name for name, (signs, _) in TOLD.items() if signs])
@pytest.mark.parametrize("pause", [2, 4, 7])
def test_a_run_that_goes_on_is_told_the_same(name: str, pause: int) -> None:
    made, rows = settings(SETTINGS.get(name, {})), RECORDED[name]
    before, after = LearningWatch(made), LearningWatch(made)
    told = seen(before, rows[:pause])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert told + seen(after, rows[pause:], pause + 1) == seen(LearningWatch(made), rows)


def told_of(rows: list[dict[str, float]], **changes: Any) -> dict[str, str]:
    return {name: text for _, name, text in seen(LearningWatch(settings(changes)), rows)}


def learning(**changes: float) -> dict[str, float]:
    """A step of the healthy run, with other values."""
    return {**RECORDED["healthy"][9], **changes}


def test_the_ceiling_is_told_apart_from_a_reward_that_never_changes() -> None:
    solved = learning(**{"reward/mean": 1.0, "reward/std": 0.0, "reward/equal_groups": 1.0})
    assert "the reward is at its ceiling: 1" in told_of(RECORDED["healthy"][:20] + [solved] * 5)["equal rewards"]
    assert "the same reward, 1" in told_of([solved] * 5)["equal rewards"]


@pytest.mark.parametrize(
    ("sign", "changes", "text"),
    [
        ("failing rewards", {"reward/failures": 200.0}, "200 of 256 reward calls failed"),
        ("dropped groups", {"data/groups_dropped": 640.0}, "640 of 704 groups were sampled and left out"),
        ("no gradient", {"train/grad_norm": 0.0}, "the gradient is 0, though rewards or examples differ"),
    ],
)
def test_signs_that_no_recorded_run_has(sign: str, changes: dict[str, float], text: str) -> None:
    steps = next(one.steps for one in SIGNS if one.name == sign)
    assert text in told_of([learning(**changes)] * steps)[sign]
    assert told_of([learning(**changes)] * (steps - 1)) == {}, "it must hold for some steps"
    assert told_of([learning(**changes), learning()] * 10).keys() <= {"failing rewards"}


def test_a_critic_in_its_warmup_is_no_sign() -> None:
    row = {name: value for name, value in learning().items() if not name.startswith("train/")}
    ppo = {"algorithm": {"name": "ppo"}, "critic": {"warmup_steps": 4}}
    assert told_of([row] * 4 + [learning()] * 4, **ppo) == {}
    assert "no token of them is in the loss mask" in told_of([row] * 7, **ppo)["nothing trained"]


def test_samples_that_are_not_compared_in_groups_may_be_equal_there() -> None:
    row = learning(**{"reward/equal_groups": 1.0, "reward/std": 0.4})
    assert "equal rewards" in told_of([row] * 5)
    assert told_of([row] * 5, algorithm={"name": "reinforce_pp"}) == {}
