import json
from pathlib import Path

import pytest

from pentad.errors import UserError
from pentad.rewards import builtin

SAMPLE = Path(__file__).parents[2] / "examples" / "gsm8k" / "sample" / "test.jsonl"


@pytest.mark.parametrize(
    ("response", "truth", "score"),
    [
        ("so #### 72", "72", 1.0),
        ("####72", "72", 1.0),
        ("#### $72.00 dollars.", "72", 1.0),
        (r"#### \$72", "72", 1.0),
        ("#### 1,234,567", "1234567", 1.0),
        ("#### 1234", "1,234", 1.0),
        ("#### -5", "-5", 1.0),
        ("#### -$5", "-5", 1.0),
        ("#### $-5", "-5", 1.0),
        ("#### .5", "0.5", 1.0),
        ("#### 72.", 72, 1.0),
        ("#### 1\n#### 2", "2", 1.0),
        ("#### 2\n#### 1", "2", 0.0),
        ("#### 72\n####", "72", 0.0),
        ("72", "72", 0.0),
        ("### 72", "72", 0.0),
        ("#### about 72", "72", 0.0),
        ("#### 720", "72", 0.0),
        ("#### 1,2", "1", 0.0),
        ("#### 1/2", "1", 0.0),
        ("#### 1.2.3", "1.2", 0.0),
        ("#### 5", "-5", 0.0),
        ("", "72", 0.0),
    ],
)
def test_gsm8k(response: str, truth: object, score: float) -> None:
    assert builtin.gsm8k("", response, truth) == score


def test_gsm8k_accepts_every_published_solution_and_only_for_its_own_problem() -> None:
    solutions = [json.loads(line)["answer"] for line in SAMPLE.read_text().splitlines()]
    assert all(builtin.gsm8k("", solution, solution) == 1.0 for solution in solutions)
    first = solutions[0].rpartition("####")[2]
    others = [s for s in solutions if s.rpartition("####")[2] != first]
    assert len(others) > 50
    assert not any(builtin.gsm8k("", other, first) for other in others)


def test_gsm8k_refuses_a_truth_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="is not a number"):
        builtin.gsm8k("", "#### 1", "one")


@pytest.mark.parametrize(
    ("response", "truth", "score"),
    [
        (r"Thus \boxed{\frac{1}{2}}.", "0.5", 1.0),
        (r"Thus \boxed{\frac{2}{4}}.", r"\frac{1}{2}", 1.0),
        (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", 1.0),
        (r"\boxed{(-\infty, 2)}", r"(-\infty, 2)", 1.0),
        (r"\boxed{7}", r"$7$", 1.0),
        (r"3 or \boxed{8}", "3", 0.0),
        (r"\boxed{\frac{1}{3}}", "0.5", 0.0),
        ("no idea", "0.5", 0.0),
    ],
)
def test_math(response: str, truth: str, score: float) -> None:
    assert builtin.math("", response, truth) == score


def test_exact() -> None:
    assert builtin.exact("", " yes\n", "yes") == 1.0
    assert builtin.exact("", "Yes", "yes") == 0.0
    assert builtin.exact("", "5", 5) == 1.0


def test_whole_floats_are_whole_numbers() -> None:
    """As Parquet has them where a column of whole numbers lacked some."""
    assert builtin.exact("", "1234", 1234.0) == 1.0
    assert builtin.exact("", "-1234", -1234.0) == 1.0
    assert builtin.exact("", "12.5", 12.5) == 1.0
    assert builtin.gsm8k("", "#### 100000000000000000000", 1e20) == 1.0
    assert builtin.math("", r"\boxed{7}", 7.0) == 1.0
    assert builtin.truth_text(float("inf")) == "inf"


@pytest.mark.parametrize(
    ("data_source", "name"),
    [
        ("openai/gsm8k", "gsm8k"),
        ("agentica-org/DeepScaleR-Preview-Dataset", "math"),
        ("HuggingFaceH4/MATH-500", "math"),
        ("reasoning_gym/chain_sum", "reasoning_gym"),
    ],
)
def test_auto(data_source: str, name: str) -> None:
    assert builtin.resolve_name("auto", data_source) == name
    assert builtin.resolve_name("exact", data_source) == "exact"


@pytest.mark.parametrize(("data_source", "found"), [("mine", "'mine'"), ("", "rows without data_source")])
def test_auto_does_not_guess(data_source: str, found: str) -> None:
    with pytest.raises(UserError, match=found) as caught:
        builtin.resolve_name("auto", data_source)
    assert "module:function" in caught.value.fix
