"""Problems of reasoning_gym, which is an optional package."""

from pathlib import Path

import pytest
import yaml
from rows import refuse, settings_for

from pentad.config.schema.data import DataSettings
from pentad.data.dataset import load_eval_rows, load_train_rows, shared_prompts
from pentad.errors import UserError

pytest.importorskip("reasoning_gym")


SUMS = "reasoning_gym:chain_sum"
EXAMPLE = Path(__file__).parents[2] / "examples" / "arithmetic" / "smollm2.yaml"


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


def test_eval_seeds_are_others_than_training_seeds() -> None:
    settings = settings_for(f"{SUMS}?size=50", eval={"held_out": f"{SUMS}?size=50"}, options={"seed": 3})
    trained = {row.prompt for row in load_train_rows(settings)}
    evaluated = {row.prompt for row in load_eval_rows(settings)["held_out"]}
    assert not trained & evaluated


def test_no_evaluation_question_of_the_example_is_trained_on() -> None:
    """Sums of few digits come again under other seeds; what counts is the question."""
    settings = DataSettings(**yaml.safe_load(EXAMPLE.read_text())["data"])
    evals = load_eval_rows(settings)
    assert len(evals["chain_sum"]) == 512
    evaluated = {row.prompt for row in evals["chain_sum"]}
    generated, rows = load_train_rows(settings), load_train_rows(settings, evals)
    seen = evaluated & {row.prompt for row in generated}
    assert len(seen) > 0.5 * len(evaluated), "the test has something to find"
    assert not evaluated & {row.prompt for row in rows}
    assert rows.held_out == sum(row.prompt in evaluated for row in generated)
    assert len(rows) + rows.held_out == len(generated) == 20000
    assert shared_prompts(rows, evals["chain_sum"]) == 0
    assert shared_prompts(generated, evals["chain_sum"]) == sum(row.prompt in seen for row in evals["chain_sum"])


def test_evaluation_on_training_seeds_leaves_them_out() -> None:
    settings = settings_for(f"{SUMS}?size=50", eval={"same": f"{SUMS}?size=20&seed=40"})
    rows = load_train_rows(settings, load_eval_rows(settings))
    assert [row.id for row in rows] == [f"chain_sum[{index}]" for index in range(40)]
    assert rows.held_out == 10


def test_nothing_left_to_train_on_is_refused() -> None:
    settings = settings_for(f"{SUMS}?size=50", eval={"same": f"{SUMS}?size=50&seed=0"})
    with pytest.raises(UserError, match=r"all 50 problems of data\.train=reasoning_gym:chain_sum\?size=50") as caught:
        load_train_rows(settings, load_eval_rows(settings))
    assert "data.eval_limit" in caught.value.fix


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
