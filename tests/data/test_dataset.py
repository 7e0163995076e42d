import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rows import refuse, settings_for

from pentad.data.dataset import load_eval_rows, load_rows, load_train_rows
from pentad.errors import UserError

VERL_ROW = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1 + 1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0, "answer": "#### 2", "question": "1 + 1?"},
}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_verl_schema(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, [VERL_ROW, VERL_ROW])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([VERL_ROW, VERL_ROW]), path)
    rows = load_train_rows(settings_for(path))
    assert len(rows) == 2
    assert rows[1].id == ("rows.jsonl:2" if suffix == "jsonl" else "rows.parquet[1]")
    assert rows[1].prompt == ({"role": "user", "content": "1 + 1?"},)
    assert rows[1].data_source == "openai/gsm8k"
    assert rows[1].ground_truth == "2"
    assert rows[1].extra == VERL_ROW
    assert rows[1].response is None


def test_flat_rows_pass_their_columns_on(tmp_path: Path) -> None:
    record = {"text": "hi", "answer": "yo", "level": 3, "extra_info": {"k": 1}}
    path = write_jsonl(tmp_path / "a.jsonl", [record])
    row = load_train_rows(settings_for(path, prompt_column="text"))[0]
    assert (row.prompt, row.ground_truth, row.data_source) == ("hi", "yo", "")
    assert row.extra == record


def test_ground_truth_goes_before_answer_and_may_be_absent(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "answer": "long", "ground_truth": "5"}, {"prompt": "y"}])
    first, second = load_train_rows(settings_for(path))
    assert (first.ground_truth, first.extra["answer"]) == ("5", "long")
    assert second.ground_truth is None


@pytest.mark.parametrize("column", ["ground_truth", "answer"])
def test_nan_is_a_missing_ground_truth(tmp_path: Path, column: str) -> None:
    table = pyarrow.table({"prompt": ["x", "y"], column: [5.0, float("nan")]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [row.ground_truth for row in load_train_rows(settings_for(tmp_path / "a.parquet"))] == [5.0, None]
    path = write_jsonl(tmp_path / "a.jsonl", [VERL_ROW | {"reward_model": {"ground_truth": float("nan")}}])
    refuse(path, "a.jsonl:1: column 'reward_model' has no 'ground_truth'")


def test_half_a_surrogate_pair_is_refused(tmp_path: Path) -> None:
    """Valid JSON, and nothing that a tokenizer takes."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "fine \U0001f600"}, {"prompt": "ab\ud800"}])
    refuse(path, "a.jsonl:2: column 'prompt'", "\\ud800, as character 3")
    conversation = [{"role": "user", "content": "ok"}, {"role": "user", "content": "\udfff"}]
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": conversation}])
    refuse(path, "b.jsonl:1: message 1 of 'prompt' (user)", "\\udfff")
    path = write_jsonl(tmp_path / "c.jsonl", [{"prompt": "x", "response": "\ud800"}])
    with pytest.raises(UserError, match=r"c\.jsonl:1: column 'response' has half a surrogate"):
        load_train_rows(settings_for(path), with_response=True)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "x"}\r\n{"prompt": "y"}\r\n')
    assert [(row.id, row.prompt) for row in load_train_rows(settings_for(tmp_path / "a.jsonl"))] == [
        ("a.jsonl:1", "x"),
        ("a.jsonl:2", "y"),
    ]


def test_a_directory_of_shards_is_read_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "2"}])
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "0"}, {"prompt": "1"}])
    (tmp_path / "notes.txt").write_text("not data")
    assert [row.prompt for row in load_train_rows(settings_for(tmp_path))] == ["0", "1", "2"]


def test_a_directory_of_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"prompt": "0"}])
    refuse(tmp_path, "several splits: test.jsonl, train.jsonl", f"data.train={tmp_path}/t")


def test_with_response(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "response": "y"}])
    row = load_rows(str(path), settings_for(path), with_response=True)[0]
    assert row.response == "y"


def test_eval_limit_does_not_touch_training(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": str(i)} for i in range(5)])
    settings = settings_for(path, eval={"mine": str(path)}, eval_limit=2)
    assert len(load_train_rows(settings)) == 5
    assert [row.prompt for row in load_eval_rows(settings)["mine"]] == ["0", "1"]


def test_missing_file_names_those_nearby(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [])
    refuse(tmp_path / "trian.jsonl", "data.train=", "does not exist", "train.jsonl")
    refuse(tmp_path / "no" / "such" / "train.jsonl", f"nearest directory that exists is {tmp_path}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"prompt": \n')
    refuse(tmp_path / "a.jsonl", "a.jsonl:2: not JSON")
    (tmp_path / "b.jsonl").write_text('{"prompt": "x"}\n["x"]\n')
    refuse(tmp_path / "b.jsonl", "b.jsonl:2", "not list")
    (tmp_path / "c.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    refuse(tmp_path / "c.jsonl", "not UTF-8")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nonsense")
    refuse(tmp_path / "d.parquet", "not a readable Parquet file")
    (tmp_path / "e.txt").write_text("[]")
    refuse(tmp_path / "e.txt", "none of .jsonl", "convert it to one of them")
    (tmp_path / "f.jsonl").write_text("\n")
    refuse(tmp_path / "f.jsonl", "has no rows")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "is a directory without .jsonl, ")


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ({"promt": "x", "level": 1}, ["no column 'prompt'", "promt, level", "data.prompt_column to a column"]),
        ({"question": "x", "answer": "#### 1"}, ["no column 'prompt'; columns: question, answer"]),
        ({"prompt": 5}, ["of type int", "not a string or a list"]),
        ({"prompt": None}, ["is null"]),
        ({"prompt": "  "}, ["is empty"]),
        ({"prompt": []}, ["no messages"]),
        ({"prompt": [{"role": "human", "content": "x"}]}, ["message 0", "'human'", "system, user, assistant, tool"]),
        ({"prompt": [{"from": "someone", "value": "x"}]}, ["'someone'", "system, user, assistant, tool"]),
        ({"prompt": [{"speaker": "user", "text": "x"}]}, ["'role' and 'content'", "'speaker', 'text'"]),
        ({"prompt": [{"role": "user", "content": [1]}]}, ["of type list"]),
        ({"prompt": [{"role": "user", "content": ""}]}, ["message 0", "empty"]),
        ({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, ["ends with"]),
        ({"prompt": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}, ["system message"]),
        ({"prompt": "x", "reward_model": {"style": "rule"}}, ["'reward_model' has no 'ground_truth'"]),
        ({"prompt": "x", "extra_info": 3}, ["'extra_info' is of type int"]),
        ({"prompt": "x", "data_source": 3}, ["'data_source' is of type int"]),
    ],
)
def test_wrong_rows_are_refused_with_their_place(tmp_path: Path, row: dict, fragments: list[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "fine"}, row])
    refuse(path, "a.jsonl:2: ", *fragments)


@pytest.mark.parametrize(
    ("row", "fragment"),
    [({"prompt": "x"}, "no column 'response'"), ({"prompt": "x", "response": ""}, "is empty")],
)
def test_missing_responses_are_refused(tmp_path: Path, row: dict, fragment: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=fragment):
        load_rows(str(path), settings_for(path), with_response=True)


# Hub datasets, by way of a local directory laid out like one.


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    directory = tmp_path / "hub"
    directory.mkdir()
    write_jsonl(directory / "train.jsonl", [{"prompt": "train 0"}, {"prompt": "train 1"}])
    write_jsonl(directory / "validation.jsonl", [{"prompt": "validation 0"}])
    return directory


def test_hub_splits(hub: Path) -> None:
    source = f"hf:{hub}"
    settings = settings_for(source, eval={"default": source, "named": f"{source}:train"})
    rows = load_train_rows(settings)
    assert [row.prompt for row in rows] == ["train 0", "train 1"]
    assert rows[1].id == f"{hub}:train[1]"
    evals = load_eval_rows(settings)
    assert [row.prompt for row in evals["default"]] == ["validation 0"]
    assert [row.prompt for row in evals["named"]] == ["train 0", "train 1"]


def test_hub_errors(hub: Path) -> None:
    refuse(f"hf:{hub}:nosuch", "no split nosuch", ":train, :validation")
    refuse(f"hf:{hub}:conf:train", "no configuration 'conf'", "default")
    refuse("hf:", "not hf:NAME")
    refuse(f"hf:{hub}/missing", "cannot be loaded", "name a .parquet or .jsonl file")


def test_hub_with_several_configurations(hub: Path) -> None:
    (hub / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: train.jsonl\n"
        "- config_name: b\n  data_files: validation.jsonl\n---\n"
    )
    refuse(f"hf:{hub}", "2 configurations: a, b", f"hf:{hub}:a")
    assert [row.prompt for row in load_train_rows(settings_for(f"hf:{hub}:b"))] == ["validation 0"]
    assert len(load_train_rows(settings_for(f"hf:{hub}:a:train"))) == 2


def test_options_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x"}])
    refuse(path, "data.options is set", options={"size": 3})
