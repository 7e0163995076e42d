"""Rewards that fail: counted where some calls fail, the end of a run where all of them do."""

import json
from collections.abc import Callable

import pytest
from command import Command
from spoiled_run import ROW, Bench, bench, check_refusal

__all__ = ["bench"]
pytestmark = pytest.mark.slow

NEVER_WORKS = """
def score(prompt, response, ground_truth):
    raise ValueError('two' + chr(10) + 'lines')
"""
RETURNS_NOTHING = """
def score(prompt, response, ground_truth):
    return None
"""
SOMETIMES_FAILS = """
import os, time

def score(prompt, response, ground_truth):
    if prompt == "sort 0000=":
        raise ValueError("no digits")
    if prompt == "sort 1111=":
        time.sleep(600)
    if prompt == "sort 2222=":
        return float("nan")
    if prompt == "sort 3333=":
        os._exit(3)
    print("scoring", prompt[5:9])
    return 1.0
"""


def test_a_reward_that_never_works_ends_the_run_and_one_that_sometimes_fails_does_not(
    bench: Bench, pentad: Callable[..., Command]
) -> None:
    """What was wrong is put right, and the run is started again as it was."""
    bench.data(*({"prompt": f"sort {digit * 4}=", "ground_truth": "0"} for digit in ("0", "1", "2", "3", "4", "5" * 4)))
    given = [
        "reward.name=mine:score",
        "reward.timeout_s=2",  # a busy machine may take a good part of a second for a call
        "trainer.prompts_per_step=5",
        "data.max_prompt_tokens=10",
        "data.too_long=drop",
        "rollout.top_p=0.9",
    ]
    (bench.folder / "mine.py").write_text(NEVER_WORKS)
    command = pentad("train", str(bench.config), *given)
    check_refusal(command.ends_within(180), command.stderr, "all 10 calls", "ValueError: two lines", "reward.name")
    assert command.stdout.count("reward failed (") == 1
    assert "step 1/2" not in command.stdout

    (bench.folder / "mine.py").write_text(SOMETIMES_FAILS)
    command = pentad("train", str(bench.config), *given)
    assert command.ends_within(180) == 0, command.stderr
    assert command.stderr == ""
    check_counted(command.stdout.splitlines())
    rows = [json.loads(line) for line in (bench.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward/failures"] for row in rows] == [8, 8]
    # Two samples of each prompt; those of four prompts have no reward and are left out.
    assert [row["data/samples_generated"] for row in rows] == [10, 10]
    assert [row["data/samples_left_out"] for row in rows] == [8, 8]
    assert [row["data/samples_consumed"] for row in rows] == [2, 2]
    assert (bench.folder / "run" / "model" / "model.safetensors").exists()
    assert (bench.folder / "run" / "rewards.log").read_text() == "scoring 4444\n" * 4
    assert "scoring" not in command.stdout
    notes = [line for line in command.stdout.splitlines() if line.startswith("note: ")]
    assert [note.split(":")[1].split(" = ")[0] for note in notes] == [" rollout.top_p", " data.train"]
    assert "1 of 6 prompts are longer" in notes[1]


def check_counted(lines: list[str]) -> None:
    """Raising, hanging, returning NaN and dying each cost one sample; the run goes on, and says so."""
    assert any("4 timeouts, 4 crashes, 4 exceptions, 4 bad_values" in line for line in lines)
    told = [line for line in lines if line.startswith("reward failed (")]
    assert len(told) == 4, "the first of each kind is told"
    assert lines.index(told[-1]) < next(i for i, line in enumerate(lines) if line.startswith("step 1/2"))
    assert any(line.startswith("reward failed (exception): ValueError: no digits (") for line in told)
    assert [line for line in lines if "reward failures 8" in line and line.startswith("step ")]


@pytest.mark.long
def test_a_reward_that_never_works_ends_the_first_evaluation(bench: Bench, pentad: Callable[..., Command]) -> None:
    (bench.folder / "mine.py").write_text(RETURNS_NOTHING)
    bench.data(*[ROW] * 3)
    evaluated = ["trainer.val_before_train=true", "data.eval={mine: train.jsonl}"]
    command = pentad("train", str(bench.config), "reward.name=mine:score", *evaluated)
    check_refusal(command.ends_within(180), command.stderr, "all 3 calls", "None")
    assert command.stdout.count("reward failed (") == 1
    assert "step 1/2" not in command.stdout
