"""Problems of reasoning_gym, which is an optional package."""

import pytest
from rows import refuse, settings_for

from pentad.data.dataset import load_eval_rows, load_train_rows
from pentad.errors import UserError

pytest.importorskip("reasoning_gym")


SUMS = "reasoning_gym:chain_sum"


def test_procedural_rows_are_reproducible_and_take_options() -> None:
    settings = settings_for(SUMS, options={"size": 4, "min_terms": 2, "max_terms": 2, "seed": 5})
    rows = load_train_rows(settings)
    assert len(rows) == 4
    assert rows.rows == load_train_rows(settings).rows
    assert rows[0].data_source == "reasoning_gym/chain_sum"
    assert rows[0].extra["task"] == "chain_sum"
    assert rows[0].extra["config"] == {"min_terms": 2, "max_terms": 2, "seed": 5}
    assert rows[0].extra["entry"]["answer"] == rows[0].ground_truth
    assert all(row.extra["entry"]["metadata"]["num_terms"] == 2 for row in rows)


def test_options_in_the_source_go_first() -> None:
    rows = load_train_rows(settings_for(f"{SUMS}?size=2&max_terms=3", options={"size": 9, "min_terms": 3}))
    assert len(rows) == 2
    assert all(row.extra["entry"]["metadata"]["num_terms"] == 3 for row in rows)


def test_tasks_take_turns() -> None:
    rows = load_train_rows(settings_for(f"{SUMS}+gcd?size=2"))
    assert [row.id for row in rows] == ["chain_sum[0]", "gcd[0]", "chain_sum[1]", "gcd[1]"]


def test_eval_problems_are_fresh() -> None:
    settings = settings_for(f"{SUMS}?size=50", eval={"held_out": f"{SUMS}?size=50"}, options={"seed": 3})
    trained = {row.prompt for row in load_train_rows(settings)}
    evaluated = {row.prompt for row in load_eval_rows(settings)["held_out"]}
    assert not trained & evaluated


def test_overlapping_eval_seeds_are_refused() -> None:
    settings = settings_for(f"{SUMS}?size=50", eval={"bad": f"{SUMS}?size=5&seed=49", "good": f"{SUMS}?size=5&seed=50"})
    with pytest.raises(UserError, match=r"data\.eval\.bad.*overlap the training seeds 0 to 49") as caught:
        load_eval_rows(settings)
    assert "50 or more" in caught.value.fix


def test_eval_limit_of_procedural_rows() -> None:
    settings = settings_for(f"{SUMS}?size=5", eval={"few": f"{SUMS}+gcd?size=500"}, eval_limit=3)
    assert [row.id for row in load_eval_rows(settings)["few"]] == ["chain_sum[0]", "gcd[0]", "chain_sum[1]"]


def test_procedural_errors() -> None:
    refuse("reasoning_gym:chain_sums", "no task 'chain_sums'", "chain_sum")
    refuse(SUMS, "no option 'min_term'", "'min_terms'", options={"min_term": 2})
    refuse(f"{SUMS}?size", "is not OPTION=VALUE")
    refuse(f"{SUMS}?size=0", "size=0")
    refuse(f"{SUMS}?seed=a", "seed='a'")
    refuse(f"{SUMS}?min_terms=9&max_terms=2", "refuses its options")
    refuse(f"{SUMS}+chain_sum", "twice")
    with pytest.raises(UserError, match="no wanted responses"):
        load_train_rows(settings_for(SUMS), with_response=True)
