"""Several sources: one set, one after the other, or by weights."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pentad.config.schema.data import DataSettings
from pentad.data.dataset import load_train_rows
from pentad.data.mixture import make_order
from pentad.data.rows import PromptRow
from pentad.data.sampler import PromptSampler
from pentad.errors import UserError

SIZES = (6, 3)
ROWS = tuple(PromptRow(f"{part}.{i}", "x", source=part) for part, size in enumerate(SIZES) for i in range(size))


def settings(**more: Any) -> DataSettings:
    return DataSettings(train=["a.jsonl", "b.jsonl"], **more)


def parts(taken: list[int]) -> list[int]:
    return [ROWS[index].source for index in taken]


def test_sources_are_read_in_order_and_said(tmp_path: Path) -> None:
    for name, size in zip("ab", SIZES, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"question": f"{name}{i}"}) + "\n" for i in range(size))
        )
    rows = load_train_rows(DataSettings(train=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]))
    assert [row.prompt for row in rows] == [*(f"a{i}" for i in range(6)), *(f"b{i}" for i in range(3))]
    assert [row.source for row in rows] == [0] * 6 + [1] * 3
    assert rows.said == ("data.train[0]: prompts from 'question'", "data.train[1]: prompts from 'question'")


def test_one_set_is_walked_as_one_source_is() -> None:
    taken = make_order(ROWS, 7, settings()).next(20)
    assert taken == PromptSampler(ROWS, 7).next(20)


def test_in_sequence_each_epoch_takes_the_sources_one_after_the_other() -> None:
    taken = make_order(ROWS, 7, settings(mix="sequence")).next(18)
    assert parts(taken) == ([0] * 6 + [1] * 3) * 2
    assert sorted(taken[:9]) == sorted(taken[9:]) == list(range(9))
    assert taken[:6] != sorted(taken[:6]), "shuffled within a source"
    assert make_order(ROWS, 7, settings(mix="sequence", shuffle=False)).next(9) == list(range(9))


@pytest.mark.parametrize("weights", [[3.0, 1.0], [1.0, 5.0], [0.3, 0.7]])
def test_weights_are_shares_at_any_time(weights: list[float]) -> None:
    order = make_order(ROWS, 7, settings(weights=weights))
    taken: list[int] = []
    for _ in range(60):
        taken += order.next(1)
        counts = Counter(parts(taken))
        assert all(abs(counts[p] - len(taken) * w / sum(weights)) < 1.0 for p, w in enumerate(weights))
    smaller = [index for index in taken if ROWS[index].source == 1]
    for epoch in range(len(smaller) // 3):
        assert sorted(smaller[3 * epoch : 3 * epoch + 3]) == [6, 7, 8], "each epoch of a source takes each row once"


@pytest.mark.parametrize("more", [{"mix": "sequence"}, {"weights": [2.0, 1.0]}, {}])
def test_a_state_goes_on(more: dict[str, Any]) -> None:
    whole, first, second = (make_order(ROWS, 7, settings(**more)) for _ in range(3))
    wanted = whole.next(30)
    taken = first.next(11)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert taken + second.next(19) == wanted


def test_a_state_of_another_mixture_is_refused() -> None:
    weighted, other, together = (
        make_order(ROWS, 7, settings(**m)) for m in ({"weights": [1.0, 1.0]}, {"weights": [2.0, 1.0]}, {})
    )
    for mine, state in ((other, weighted), (weighted, together), (together, weighted)):
        with pytest.raises(UserError, match="the order of the prompts could not be continued"):
            mine.load_state_dict(state.state_dict())


@pytest.mark.parametrize(
    ("weights", "fragment"), [([1.0], "has 1 numbers, but data.train has 2 sources"), ([1.0, 0.0], "not above 0")]
)
def test_weights_that_do_not_fit(weights: list[float], fragment: str) -> None:
    with pytest.raises(UserError, match=fragment):
        make_order(ROWS, 7, settings(weights=weights))
    with pytest.raises(UserError, match=r"all rows of b.jsonl were left out"):
        make_order(ROWS[:6], 7, settings(weights=[1.0, 1.0]))
