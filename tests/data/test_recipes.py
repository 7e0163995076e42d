import json
from pathlib import Path

import pyarrow.parquet
import pytest

from pentad.config.schema.data import DataSettings
from pentad.data.dataset import load_train_rows
from pentad.data.recipes import DEEPSCALER_SUFFIX, prepare_deepscaler, prepare_gsm8k
from pentad.errors import UserError

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
