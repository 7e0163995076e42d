import json
from pathlib import Path

import pyarrow.parquet
import pytest
from rows import settings_for

from pentad.config.schema.data import DataSettings
from pentad.data.dataset import load_train_rows
from pentad.data.recipes import DEEPSCALER_SUFFIX, prepare_dapo, prepare_deepscaler, prepare_gsm8k, prepare_math
from pentad.errors import UserError
from pentad.rewards.builtin import resolve_name

SAMPLE = Path(__file__).parents[2] / "examples" / "gsm8k" / "sample"


def test_gsm8k_becomes_the_schema_that_training_reads(tmp_path: Path) -> None:
    prepared = prepare_gsm8k(SAMPLE, tmp_path / "new" / "gsm8k")
    assert (prepared.train_rows, prepared.test_rows) == (64, 64)
    assert sorted(p.name for p in prepared.train.parent.iterdir()) == ["test.parquet", "train.parquet"]
    raw = json.loads((SAMPLE / "train.jsonl").read_text().splitlines()[0])
    row = load_train_rows(DataSettings(train=str(prepared.train)))[0]
    assert row.prompt == (
        {
            "role": "user",
            "content": raw["question"] + ' Let\'s think step by step and output the final answer after "####".',
        },
    )
    assert row.ground_truth == "72"
    assert row.data_source == "openai/gsm8k"
    assert row.extra["extra_info"] == {
        "split": "train",
        "index": 0,
        "answer": raw["answer"],
        "question": raw["question"],
    }
    columns = pyarrow.parquet.read_schema(prepared.test).names
    assert columns == ["data_source", "prompt", "ability", "reward_model", "extra_info"]


def test_limit(tmp_path: Path) -> None:
    prepared = prepare_gsm8k(SAMPLE, tmp_path, limit=5)
    assert (prepared.train_rows, prepared.test_rows) == (5, 5)


def test_a_failure_leaves_old_files_as_they_were(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_gsm8k(SAMPLE, out, limit=3)
    before = (out / "train.parquet").read_bytes()
    broken = tmp_path / "raw"
    broken.mkdir()
    (broken / "train.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n')
    (broken / "test.jsonl").write_text('{"question": "q", "answer": "one"}\n')
    with pytest.raises(UserError, match=r"test.jsonl:1: the answer has no '#### number'"):
        prepare_gsm8k(broken, out)
    assert (out / "train.parquet").read_bytes() == before


def test_gsm8k_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        prepare_gsm8k(tmp_path, tmp_path)
    (tmp_path / "train.jsonl").write_text('{"query": "q", "answer": "#### 1"}\n')
    with pytest.raises(UserError, match=r"train.jsonl:1: column 'question' is missing.*columns: query, answer"):
        prepare_gsm8k(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["deepscaler.json", "deepscaler.jsonl"])
def test_deepscaler_holds_out_whole_problems(tmp_path: Path, name: str) -> None:
    raw = [{"problem": f"p{i % 40}", "answer": rf"\frac{{{i % 40}}}{{7}}", "solution": "..."} for i in range(60)]
    text = json.dumps(raw) if name.endswith(".json") else "\n".join(map(json.dumps, raw))
    (tmp_path / name).write_text(text)
    prepared = prepare_deepscaler(tmp_path, tmp_path / "out")
    train = load_train_rows(DataSettings(train=str(prepared.train)))
    test = load_train_rows(DataSettings(train=str(prepared.test)))
    assert len(train) + len(test) == 60
    assert len({row.extra["extra_info"]["question"] for row in test}) == 4
    assert not {row.extra["extra_info"]["question"] for row in train} & {
        row.extra["extra_info"]["question"] for row in test
    }
    assert test[0].prompt[0]["content"].endswith(DEEPSCALER_SUFFIX)
    assert test[0].ground_truth.startswith(r"\frac")
    assert "deepscaler" in test[0].data_source.lower()
    assert prepare_deepscaler(tmp_path / name, tmp_path / "again").test.read_bytes() == prepared.test.read_bytes()


def test_deepscaler_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of deepscaler\.jsonl"):
        prepare_deepscaler(tmp_path, tmp_path)
    (tmp_path / "deepscaler.json").write_text("3")
    with pytest.raises(UserError, match="not a list of objects"):
        prepare_deepscaler(tmp_path, tmp_path)
    (tmp_path / "deepscaler.json").write_text('[{"problem": "p", "answer": "1"}]')
    with pytest.raises(UserError, match="cannot be split"):
        prepare_deepscaler(tmp_path, tmp_path)


def test_math_takes_the_last_boxed_answer(tmp_path: Path) -> None:
    """Of the raw directories, one file a problem, and of files by split."""
    for split, boxed in (("train", r"\boxed{1} or \boxed{\frac{1}{2}}"), ("test", r"$\boxed{3}$.")):
        (tmp_path / "raw" / split / "algebra").mkdir(parents=True)
        row = {"problem": f"{split}?", "level": "Level 1", "type": "Algebra", "solution": f"So {boxed}"}
        (tmp_path / "raw" / split / "algebra" / "1.json").write_text(json.dumps(row))
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    for source in (tmp_path / "raw", tmp_path):
        prepared = prepare_math(source, tmp_path / "out")
        (row,) = load_train_rows(settings_for(prepared.train))
        assert row.ground_truth == r"\frac{1}{2}"
        assert row.prompt[0]["content"].startswith("train? Let's think")
        assert resolve_name("auto", row.data_source) == "math"
        assert load_train_rows(settings_for(prepared.test))[0].ground_truth == "3"
    (tmp_path / "test.jsonl").write_text(json.dumps({"problem": "x", "solution": r"\boxed{1"}))
    with pytest.raises(UserError, match=r"test\.jsonl:1: the solution has no"):
        prepare_math(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="has neither a file nor a directory train"):
        prepare_math(tmp_path / "out" / "none", tmp_path)


def test_dapo_takes_each_problem_once(tmp_path: Path) -> None:
    before = "Solve the following math problem step by step. The last line is Answer: $Answer.\n\n"
    after = '\n\nRemember to put your answer on its own line after "Answer:".'
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{before}What\n\nis {n}?{after}"}],
            "reward_model": {"ground_truth": str(n)},
        }
        for n in [*range(20), *range(20)]
    ]
    (tmp_path / "dapo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare_dapo(tmp_path / "dapo.jsonl", tmp_path / "out")
    assert (prepared.train_rows, prepared.test_rows) == (18, 2)
    taken = [row for path in (prepared.train, prepared.test) for row in load_train_rows(settings_for(path))]
    assert sorted(int(row.ground_truth) for row in taken) == list(range(20))
    assert all(row.prompt[0]["content"].startswith(f"What\n\nis {row.ground_truth}? Let's think") for row in taken)
    assert resolve_name("auto", taken[0].data_source) == "math"
    assert prepare_dapo(tmp_path / "dapo.jsonl", tmp_path / "out", limit=5).train_rows == 4
