"""What a reward may return, what it may ask for, and what becomes of a sample whose reward failed."""

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows import settings_for

from pentad.data.dataset import load_train_rows
from pentad.loops.scoring import reward_item
from pentad.rewards.failed import is_dropped, with_reward
from pentad.rewards.load import load_reward
from pentad.rewards.types import RewardItem, RewardResult
from pentad.rewards.worker import finite_number, score
from pentad.samples.trajectory import Trajectory


@pytest.mark.parametrize(
    "value",
    [
        1,
        True,
        0.5,
        Decimal("0.25"),
        Fraction(1, 4),
        np.float32(0.25),
        np.float64(0.25),
        np.int64(3),
        np.bool_(True),
        np.array(0.25),
        torch.tensor(0.0),
        torch.tensor(3),
        torch.tensor(True),
        torch.tensor(0.25, dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_numbers(value: Any) -> None:
    assert finite_number(value) == float(value)
    assert type(finite_number(value)) is float


@pytest.mark.parametrize(
    "value",
    [
        None,
        "1.0",
        [1.0],
        1j,
        10**400,
        math.nan,
        math.inf,
        Decimal("NaN"),
        Decimal("sNaN"),
        np.float32("nan"),
        np.array([0.5]),
        torch.tensor(math.nan),
        torch.tensor([0.5, 0.5]),
        torch.tensor(1j),
    ],
    ids=repr,
)
def test_what_is_no_finite_number(value: Any) -> None:
    assert finite_number(value) is None


VERL_ROW = """{"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": "1 + 1?"}], "ability": "math",
"reward_model": {"style": "rule", "ground_truth": "2"}, "difficulty": 3, "hint": null,
"extra_info": {"split": "train", "index": 7, "difficulty": "of extra_info"}}"""


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data_source", "openai/gsm8k"),
        ("reward_model", {"style": "rule", "ground_truth": "2"}),
        ("difficulty", 3),  # a column goes before an entry of extra_info
        ("extra_info", {"split": "train", "index": 7, "difficulty": "of extra_info"}),
        ("ability", "math"),
        ("index", 7),
        ("hint", None),
    ],
)
@pytest.mark.parametrize("default", ["", "='default'"])
def test_a_reward_gets_every_column_of_the_row(tmp_path: Path, argument: str, value: Any, default: str) -> None:
    (tmp_path / "rows.jsonl").write_text(VERL_ROW.replace("\n", "") + "\n")
    module = f"columns_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(f"def f(response, {argument}{default}):\n    return {argument}\n")
    item = reward_item(load_train_rows(settings_for(tmp_path / "rows.jsonl"))[0], "two")
    reward = load_reward(f"{module}:f", {}, tmp_path)
    assert argument in item.columns
    assert reward(item.prompt, item.response, item.ground_truth, item.columns) == value


def test_a_reward_of_any_argument_gets_all_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hi", "answer": "yo", "level": 3}\n')
    module = f"everything_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(
        "def f(prompt, **rest):\n    return {'score': rest['level'], 'names': 1.0 * len(rest), 'prompt': len(prompt)}\n"
    )
    item = reward_item(load_train_rows(settings_for(tmp_path / "rows.jsonl"))[0], "response")
    result = score(load_reward(f"{module}:f", {}, tmp_path), item)
    # response, ground_truth, answer, level
    assert result == RewardResult(3.0, metrics={"names": 4.0, "prompt": 2.0})


def test_data_source_of_rows_without_columns() -> None:
    assert RewardItem("", "", data_source="reasoning_gym/gcd").columns == {"data_source": "reasoning_gym/gcd"}
    assert RewardItem("", "").names == "none"


def trajectory() -> Trajectory:
    return Trajectory(
        tokens=torch.tensor([1, 2]),
        sampled=torch.tensor([False, True]),
        logprobs=torch.tensor([0.0, -1.0]),
        versions=torch.tensor([-1, 0], dtype=torch.int32),
        group=0,
        episode=0,
        status="truncated",
    )


def test_a_failed_reward_drops_the_sample_or_counts_as_zero() -> None:
    failed, zero, one = RewardResult(0.0, "timeout", "slow"), RewardResult(0.0), RewardResult(1.0)
    assert [is_dropped(result, "drop") for result in (failed, zero, one)] == [True, False, False]
    assert [is_dropped(result, "zero") for result in (failed, zero, one)] == [False, False, False]
    dropped = with_reward(trajectory(), failed, "drop")
    assert (dropped.reward, dropped.status) == (0.0, "failed")
    for result, on_failure in ((failed, "zero"), (zero, "drop"), (one, "drop")):
        kept = with_reward(trajectory(), result, on_failure)
        assert (kept.reward, kept.status) == (result.score, "truncated")
