"""Real runs that cannot learn are named within ten steps: by a warning, or by an error where they cannot go on."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from command import Command
from spoiled_run import Bench, bench

__all__ = ["bench"]

_VARIED = "sum(map(ord, response)) % 5 / 4"  # tells the answers of an untrained model apart
_REWARDS = f"""
def varied(response, ground_truth):
    return {_VARIED}

def constant(response, ground_truth):
    return 0.5

def failing(response, ground_truth):
    raise ValueError("no")

def huge(response, ground_truth):
    return 1e30 * ({_VARIED} - 0.5)
"""


@dataclass(frozen=True)
class Bad:
    """A run that cannot learn.

    Attributes:
        reward: of `_REWARDS`, or one that is built in.
        overrides: what is wrong with it.
        signs: the warnings, by name, that must be among those of warnings.jsonl; empty where the run is refused.
        says: what the terminal must say.
        rows: of the data, where that matters.
    """

    reward: str
    overrides: list[str]
    signs: set[str]
    says: str
    rows: list[dict] = field(default_factory=list)


_ROW = {"prompt": "sort 4132=", "ground_truth": "1234", "level": "easy"}
RUNS: dict[str, Bad] = {
    "constant reward": Bad("constant", [], {"equal rewards"}, "every response has the same reward, 0.5"),
    "all wrong": Bad("exact", [], {"equal rewards"}, "no response is rewarded"),
    "wrong column": Bad(
        "exact", ["data.ground_truth_column=level"], {"equal rewards"}, "data.ground_truth_column", [_ROW] * 8
    ),
    "all truncated": Bad(
        "varied",
        ["rollout={max_response_tokens: 1, n: 8}"],
        {"truncated"},
        "are cut off at rollout.max_response_tokens = 1",
    ),
    "learning rate 0": Bad("varied", ["trainer.optimizer.lr=0"], {"learning rate"}, "look at trainer.optimizer.lr"),
    "temperature near 0": Bad(
        "varied", ["rollout.temperature=0.01"], {"equal rewards", "no entropy"}, "raise rollout.temperature (now 0.01)"
    ),
    "reward always failing": Bad("failing", [], set(), "calls of the reward failed"),
    "every update skipped": Bad(
        "huge",
        ["algorithm.name=dr_grpo", "trainer.max_skipped_steps=100"],
        {"skipped updates"},
        "every optimizer step is skipped",
    ),
    "every update clipped": Bad(
        "varied",
        ["algorithm={clip_low: 0, clip_high: 0, optimizer_steps: 8}", "trainer.prompts_per_step=8"],
        {"clipped"},
        "of the tokens are clipped",
    ),
    "no group admitted": Bad("constant", ["algorithm.name=dapo"], set(), "has admitted none of the last"),
    "no trainable tokens": Bad(
        "varied",
        ["algorithm={overlong_filter: true}", "rollout={n: 4, max_response_tokens: 1, temperature: 0.01}"],
        {"nothing trained", "truncated"},
        "algorithm.overlong_filter leaves out",
        [_ROW] * 8,
    ),
}


def run_bad(bench: Bench, pentad: Callable[..., Command], bad: Bad, steps: int = 10) -> tuple[Command, list[dict]]:
    """The command of the run, and its warnings."""
    (bench.folder / "mine.py").write_text(_REWARDS)
    if bad.rows:
        bench.data(*bad.rows)
    name = bad.reward if bad.reward == "exact" else f"mine:{bad.reward}"
    given = [f"reward.name={name}", f"trainer.total_steps={steps}", "trainer.save_freq=0", "trainer.export=false"]
    if not any("rollout={" in override for override in bad.overrides):
        given.append("rollout.n=4")
    command = pentad("train", str(bench.config), *given, *bad.overrides)
    assert command.ends_within(180) == (0 if bad.signs else 2), command.stderr
    log = bench.folder / "run" / "warnings.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return command, rows


def check(command: Command, rows: list[dict], bad: Bad) -> None:
    names = [row["name"] for row in rows]
    assert bad.signs <= set(names) and len(names) == len(set(names)), names
    said = " ".join((command.stdout if bad.signs else command.stderr).split())
    assert bad.says in said, said
    for row in rows:
        assert row["step"] <= 10
        assert command.stdout.count(f"warning: {row['text']}") == 1


@pytest.mark.slow
def test_a_run_that_cannot_learn_says_so_in_terminal_log_and_report(
    bench: Bench, pentad: Callable[..., Command]
) -> None:
    bad = RUNS["wrong column"]
    command, rows = run_bad(bench, pentad, bad, 6)
    check(command, rows, bad)
    assert [(row["step"], row["name"]) for row in rows] == [(5, "equal rewards")]
    assert command.stdout.index("step 5/6") < command.stdout.index("warning: ") < command.stdout.index("step 6/6")
    assert re.search(r"^warnings +\S*/run/warnings\.jsonl$", command.stdout, re.MULTILINE)
    report = (bench.folder / "run" / "report.html").read_text()
    assert "Warning of step 5: over the last 5 steps, no response is rewarded" in report


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUNS)
def test_it_is_named(bench: Bench, pentad: Callable[..., Command], name: str) -> None:
    command, rows = run_bad(bench, pentad, RUNS[name])
    check(command, rows, RUNS[name])
    print(f"\n{name}:", *(f"\n  step {row['step']}, {row['name']}: {row['text']}" for row in rows))
