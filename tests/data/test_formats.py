"""Files in the formats of other projects load without a setting, or with the one that the message names."""

import csv
import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rows import settings_for

from pentad.data.dataset import load_rows
from pentad.data.rows import PromptRow
from pentad.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}


@dataclass
class Format:
    """A record as a project documents it, and what it is read as."""

    name: str
    record: dict[str, Any]
    suffix: str = "jsonl"
    sft: bool = False
    prompt: Any = "1 + 1?"
    truth: Any = None
    response: str | None = None
    turns: int = 0
    settings: dict[str, str] = field(default_factory=dict)


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [USER],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}
SKYRL = {
    "data_source": "openai/gsm8k",
    "prompt": [USER],
    "env_class": "gsm8k",
    "reward_spec": {"method": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train"},
}
DEEPSCALER = {"problem": "1 + 1?", "answer": "2", "solution": "It is 2."}
OPENAI = {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]}
SHAREGPT = {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]}
ALPACA = {"instruction": "Add.", "input": "1 and 1", "output": "2"}

FORMATS = [
    Format("verl Parquet", VERL, "parquet", prompt=(USER,), truth="2"),
    Format("SkyRL Parquet", SKYRL, "parquet", prompt=(USER,), truth="2"),
    Format("GSM8K", {"question": "1 + 1?", "answer": "#### 2"}, truth="#### 2"),
    Format("GSM8K, tuned on", {"question": "1 + 1?", "answer": "#### 2"}, sft=True, response="#### 2"),
    Format("DeepScaleR", DEEPSCALER, "json", truth="2"),
    Format("MATH", {"problem": "1 + 1?", "level": "1", "type": "Algebra", "solution": "2"}, truth="2"),
    Format("TRL prompt and solution", {"prompt": "1 + 1?", "solution": "2"}, truth="2"),
    Format("TRL prompt only", {"prompt": [USER]}, prompt=(USER,)),
    Format("TRL completion", {"prompt": "1 + 1?", "completion": "2"}, sft=True, response="2"),
    Format("TRL chat pair", {"prompt": [USER], "completion": [ASSISTANT]}, sft=True, prompt=(USER,), response="2"),
    Format("OpenAI messages", OPENAI, sft=True, prompt=tuple(OPENAI["messages"][:2]), turns=3),
    Format("OpenAI messages, answered", OPENAI, prompt=tuple(OPENAI["messages"][:2]), truth="2"),
    Format("ShareGPT", SHAREGPT, "json", sft=True, prompt=(USER,), turns=2),
    Format("Alpaca", ALPACA, "json", sft=True, prompt="Add.\n\n1 and 1", response="2"),
    Format("AReaL", {"messages": [USER], "answer": "2"}, prompt=(USER,), truth="2"),
    Format("AReaL with solutions", {"prompt": "1 + 1?", "solutions": ["2"], "task": "math"}, truth=["2"]),
    Format("slime", {"prompt": [USER], "label": "2"}, "jsonl.gz", prompt=(USER,), truth="2"),
    Format("NeMo-RL", {"problem": "1 + 1?", "expected_answer": "2"}, truth="2"),
    Format("Trinity-RFT in CSV", {"question": "1 + 1?", "answer": "2"}, "csv", truth="2"),
    Format("OpenRLHF", {"input": "1 + 1?", "label": "2"}, truth="2"),
    Format("ms-swift", {"query": "1 + 1?", "response": "2"}, sft=True, response="2"),
    Format("messages in CSV", {"messages": json.dumps([USER, ASSISTANT])}, "csv.gz", sft=True, prompt=(USER,), turns=2),
    Format("preference pairs", {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}),
    # With the setting that the message names:
    Format(
        "DeepScaleR, tuned on", DEEPSCALER, sft=True, response="It is 2.", settings={"response_column": "solution"}
    ),
    Format(
        "NuminaMath", {"problem": "1 + 1?", "solution": "2", **SHAREGPT}, sft=True, prompt=(USER,), turns=2,
        settings={"messages_column": "conversations"},
    ),
    Format(
        "two truths", {"prompt": "1 + 1?", "solution": "2", "label": 1}, truth="2",
        settings={"ground_truth_column": "solution"},
    ),
    Format(
        "pairs, tuned on", {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}, sft=True, response="2",
        settings={"response_column": "chosen"},
    ),
    Format("plain text", {"text": "1 + 1?"}, settings={"prompt_column": "text"}),
    Format("a typing error", {"promt": "1 + 1?", "answer": "2"}, truth="2", settings={"prompt_column": "promt"}),
    Format("two questions", {"question": "1 + 1?", "query": "?"}, settings={"prompt_column": "question"}),
    Format(
        "verl, tuned on", {**VERL, "extra_info": {"answer": "It is 2."}}, "parquet", sft=True, prompt=(USER,),
        response="It is 2.", settings={"response_column": "extra_info.answer"},
    ),
]  # fmt: skip


def write(path: Path, record: dict[str, Any], suffix: str) -> None:
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record, record]), path)
        return
    with gzip.open(path, "wt", newline="") if suffix.endswith(".gz") else path.open("w", newline="") as file:
        if suffix.startswith("csv"):
            writer = csv.DictWriter(file, list(record))
            writer.writeheader()
            writer.writerows([record, record])
        else:
            file.write(json.dumps([record, record]) if suffix == "json" else f"{json.dumps(record)}\n" * 2)


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.name)
def test_formats_of_other_projects(tmp_path: Path, case: Format) -> None:
    path = tmp_path / f"rows.{case.suffix}"
    write(path, case.record, case.suffix)

    def load(**settings: str) -> tuple[tuple[PromptRow, ...], tuple[str, ...]]:
        rows = load_rows(str(path), settings_for(path, **settings), with_response=case.sft)
        return rows.rows, rows.said

    if case.settings:
        ((key, value),) = case.settings.items()
        with pytest.raises(UserError) as caught:
            load()
        assert f"data.{key}={value}" in caught.value.fix
    (row, other), said = load(**case.settings)
    assert (row.prompt, row.ground_truth, row.response) == (case.prompt, case.truth, case.response)
    assert len(row.conversation or ()) == case.turns
    assert other.prompt == row.prompt
    assert row.extra == case.record, "all columns reach the reward unchanged"
    assert len(said) == 1
    assert said[0].startswith("data.train: ")
    assert all(repr(value) in said[0] for value in case.settings.values())


def test_what_is_taken_is_said(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ALPACA, "jsonl")
    (said,) = load_rows(str(tmp_path / "a.jsonl"), settings_for("x"), with_response=True).said
    assert said == "data.train: prompts from 'instruction' with 'input', responses from 'output'"
    write(tmp_path / "b.jsonl", OPENAI, "jsonl")
    (said,) = load_rows(str(tmp_path / "b.jsonl"), settings_for("x")).said
    assert said.endswith("conversations from 'messages', without the last answer of 2, which is the ground truth")


def test_what_comes_after_the_last_answer_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"messages": [USER, ASSISTANT, USER]}, "jsonl")
    rows = load_rows(str(tmp_path / "a.jsonl"), settings_for("x"), with_response=True)
    assert rows[0].conversation == (USER, ASSISTANT)
    assert rows.said[1].startswith("data.train: 2 of 2 conversations go on after their last answer")


@pytest.mark.parametrize(
    ("messages", "fragment"),
    [([USER], "has no message of the assistant"), ([ASSISTANT, USER, ASSISTANT], "begins with the assistant")],
)
def test_conversations_that_teach_nothing(tmp_path: Path, messages: list[Any], fragment: str) -> None:
    write(tmp_path / "a.jsonl", {"messages": messages}, "jsonl")
    with pytest.raises(UserError, match=f"^a.jsonl:1: .*{fragment}"):
        load_rows(str(tmp_path / "a.jsonl"), settings_for("x"), with_response=True)


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("a.csv", "question,answer\n1,2,3\n", "a.csv:2: the line has more cells than the header"),
        ("a.csv", "question,question\n1,2\n", "names a column twice"),
        ("a.json", '{"data": [{"prompt": "x"}], "rows": [{"prompt": "y"}]}', "several lists of rows: data, rows"),
        ("a.json", '[{"prompt": "x"},\n {"prompt": }]', "a.json:2: not JSON"),
        ("a.json", '["x"]', "a.json[0]: a row must be a JSON object"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, fragment: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_rows(str(tmp_path / name), settings_for("x"))
    assert fragment in caught.value.cause


def test_json_of_other_shapes(tmp_path: Path) -> None:
    """An object a line under the name .json, rows within an object, half a gzip file, shards of one split."""
    (tmp_path / "a.json").write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    (tmp_path / "b.json").write_text('{"version": 1, "data": [{"prompt": "x"}]}')
    assert [row.id for row in load_rows(str(tmp_path / "a.json"), settings_for("x"))] == ["a.json:1", "a.json:2"]
    assert [row.id for row in load_rows(str(tmp_path / "b.json"), settings_for("x"))] == ["b.json[0]"]
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 99)[:-9])
    with pytest.raises(UserError, match="is not a whole gzip file"):
        load_rows(str(tmp_path / "c.jsonl.gz"), settings_for("x"))
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        write(tmp_path / "shards" / f"train-{shard:05}-of-00002.parquet", VERL, "parquet")
    assert len(load_rows(str(tmp_path / "shards"), settings_for("x"))) == 4


MODELSCOPE = """
class MsDataset:
    @staticmethod
    def load(name, subset_name=None):
        if name == "none/such":
            raise ValueError("no dataset of that name")
        rows = lambda split: [{"question": f"{subset_name} {split}", "answer": "1"}]
        return {split: rows(split) for split in ("train", "validation")}
"""


def test_modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a local stand-in for the library, which is not installed here."""
    with pytest.raises(UserError, match="needs the package modelscope"):
        load_rows("ms:AI-ModelScope/gsm8k", settings_for("x"))
    (tmp_path / "modelscope").mkdir()
    (tmp_path / "modelscope" / "__init__.py").write_text("")
    (tmp_path / "modelscope" / "msdatasets.py").write_text(MODELSCOPE)
    monkeypatch.syspath_prepend(tmp_path)

    def prompt(source: str, role: Any = "train") -> Any:
        return load_rows(source, settings_for("x"), role=role)[0].prompt

    assert prompt("ms:AI-ModelScope/gsm8k") == "None train"
    assert prompt("ms:AI-ModelScope/gsm8k", "eval") == "None validation"
    assert prompt("ms:AI-ModelScope/gsm8k:main") == "main train"
    assert prompt("ms:AI-ModelScope/gsm8k[main]:validation") == "main validation"
    with pytest.raises(UserError, match="no split test") as caught:
        prompt("ms:AI-ModelScope/gsm8k:test")
    assert ":train, :validation" in caught.value.fix
    with pytest.raises(UserError, match="cannot be loaded: ValueError: no dataset of that name"):
        prompt("ms:none/such")
