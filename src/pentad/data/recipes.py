"""Turning raw public datasets into the Parquet files that training reads.

Invariant: train.parquet and test.parquet are written whole or not at all, and hold every raw row that was asked
for, once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pentad.data.files import SUFFIXES, read_files
from pentad.data.hub import read_hub
from pentad.errors import UserError

GSM8K = "openai/gsm8k"
GSM8K_SUFFIX = ' Let\'s think step by step and output the final answer after "####".'
DEEPSCALER = "agentica-org/DeepScaleR-Preview-Dataset"
DEEPSCALER_SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."
DEEPSCALER_TEST_ROWS = 500
_DEEPSCALER_FILES = ("deepscaler.jsonl", "deepscaler.json", "train.jsonl", "train.parquet")

MATH = "DigitalLearningGmbH/MATH-lighteval"
DAPO = "BytedTsinghua-SIA/DAPO-Math-17k"
DAPO_SOURCE = "math_dapo"
# Its prompts ask for a last line "Answer: ..." before and after the problem.
_DAPO_BEFORE = "Solve the following math problem step by step."
_DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    train: Path
    test: Path
    train_rows: int
    test_rows: int


def prepare_gsm8k(source: str | Path | None, out_dir: str | Path, limit: int | None = None) -> Prepared:
    """Write GSM8K (https://arxiv.org/abs/2110.14168) as `train.parquet` and `test.parquet` in `out_dir`.

    Args:
        source: a directory with the raw train.jsonl and test.jsonl ({question, answer}), or None for the hub.
        out_dir: made if it is missing; files of these names are replaced.
        limit: take only the first so many rows of each split.

    Raises:
        UserError: a raw file or column is missing, or an answer does not end with `#### number`.
    """

    def convert(place: str, row: Row, split: str, index: int) -> Row:
        question, answer = _texts(place, row, "question", "answer")
        _, mark, number = answer.rpartition("####")
        if not mark or not number.strip():
            raise UserError(f"{place}: the answer has no '#### number'", "use the raw GSM8K files")
        return _verl_row(GSM8K, question, GSM8K_SUFFIX, number.strip().replace(",", ""), split, index, answer)

    splits = {}
    for split in ("train", "test"):
        if source is None:
            raw = read_hub(f"hf:{GSM8K}:main:{split}", "train", "source")
        else:
            raw = read_files(str(Path(source) / f"{split}.jsonl"), "source")
        splits[split] = _take(raw, limit, lambda place, row, index, split=split: convert(place, row, split, index))
    return _write(Path(out_dir), splits)


def prepare_deepscaler(source: str | Path | None, out_dir: str | Path, limit: int | None = None) -> Prepared:
    """Write the DeepScaleR preview dataset as `train.parquet` and `test.parquet` in `out_dir`.

    It has no test split: 500 rows, or a tenth of fewer than 5,000, are held out, chosen by a fixed seed. Rows of a
    held-out problem text that occurs more than once are held out together.

    Args:
        source: a .json, .jsonl or .parquet file with the columns problem and answer, a directory with one, or None
            for the hub.
        out_dir: made if it is missing; files of these names are replaced.
        limit: take only the first so many rows before any are held out.

    Raises:
        UserError: the source or a column is missing, or there are fewer than two different problems.
    """
    raw = read_hub(f"hf:{DEEPSCALER}:train", "train", "source") if source is None else _read_deepscaler(Path(source))
    rows = _take(raw, limit, lambda place, row, index: _texts(place, row, "problem", "answer"))
    return _write(Path(out_dir), _held_out(rows, DEEPSCALER))


def _held_out(rows: Sequence[tuple[str, ...]], name: str) -> dict[str, list[Row]]:
    """Splits of (problem, answer) of a set without a test split."""
    problems = list(dict.fromkeys(problem for problem, _ in rows))
    if len(problems) < 2:
        raise UserError(f"{len(problems)} problems cannot be split into train and test", "give more rows")
    held_out = max(1, min(DEEPSCALER_TEST_ROWS, len(problems) // 10))
    chosen = {problems[i] for i in np.random.default_rng(0).permutation(len(problems))[:held_out]}
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for index, (problem, answer) in enumerate(rows):
        split = "test" if problem in chosen else "train"
        splits[split].append(_verl_row(name, problem, DEEPSCALER_SUFFIX, answer, split, index, answer))
    return splits


def prepare_math(source: str | Path | None, out_dir: str | Path, limit: int | None = None) -> Prepared:
    r"""Write MATH (https://arxiv.org/abs/2103.03874) as `train.parquet` and `test.parquet` in `out_dir`.

    The ground truth is what the last `\boxed{}` of the solution holds.

    Args:
        source: a directory with train and test: files (train.jsonl, train.parquet) or the raw directories with one
            .json file a problem, in subdirectories by subject; columns problem and solution. None for the hub.
        out_dir: made if it is missing; files of these names are replaced.
        limit: take only the first so many rows of each split.

    Raises:
        UserError: a raw file or column is missing, or a solution has no `\boxed{}`.
    """

    def convert(place: str, row: Row, split: str, index: int) -> Row:
        problem, solution = _texts(place, row, "problem", "solution")
        answer = last_boxed(solution)
        if answer is None:
            raise UserError(f"{place}: the solution has no \\boxed{{answer}}", "use the raw MATH files")
        return _verl_row(MATH, problem, DEEPSCALER_SUFFIX, answer, split, index, solution)

    splits = {}
    for split in ("train", "test"):
        raw = read_hub(f"hf:{MATH}:{split}", "train", "source") if source is None else _math_split(Path(source), split)
        splits[split] = _take(raw, limit, lambda place, row, index, split=split: convert(place, row, split, index))
    return _write(Path(out_dir), splits)


def _math_split(source: Path, split: str) -> Iterable[tuple[str, Row]]:
    directory = source / split
    if directory.is_dir() and (problems := sorted(directory.rglob("*.json"))):
        for path in problems:
            for _, row in read_files(str(path), "source"):
                yield str(path.relative_to(source)), row
        return
    found = next((p for s in SUFFIXES if (p := source / f"{split}{s}").is_file()), None)
    if found is None:
        raise UserError(f"{source} has neither a file nor a directory {split}", f"name a directory with {split}.jsonl")
    yield from read_files(str(found), "source")


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` of a text holds, braces within it included; None where there is none."""
    _, mark, rest = text.rpartition("\\boxed{")
    if not mark:
        return None
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[:place].strip() or None
    return None


def prepare_dapo(source: str | Path | None, out_dir: str | Path, limit: int | None = None) -> Prepared:
    r"""Write DAPO-Math-17k (https://arxiv.org/abs/2503.14476) as `train.parquet` and `test.parquet` in `out_dir`.

    The published file repeats its problems about a hundred times; each is taken once. Its request for a last line
    `Answer: ...` becomes one for `\boxed{}`, which the reward `math` reads. Rows are held out as of DeepScaleR.

    Args:
        source: the published Parquet file, or another with the columns prompt and reward_model; None for the hub.
        out_dir: made if it is missing; files of these names are replaced.
        limit: take only the first so many problems.

    Raises:
        UserError: a column is missing.
    """
    raw = read_hub(f"hf:{DAPO}:train", "train", "source") if source is None else read_files(str(source), "source")
    taken: dict[str, str] = {}
    for place, row in raw:
        prompt, spec = row.get("prompt"), row.get("reward_model")
        text = prompt[-1].get("content") if isinstance(prompt, list) and prompt else prompt
        truth = spec.get("ground_truth") if isinstance(spec, Mapping) else row.get("solution")
        if not isinstance(text, str) or not isinstance(truth, str):
            raise UserError(
                f"{place}: there is no prompt with a reward_model.ground_truth; columns: {', '.join(row)}",
                "use the published Parquet file",
            )
        taken.setdefault(_dapo_problem(text), truth)
        if len(taken) == limit:
            break
    return _write(Path(out_dir), _held_out(list(taken.items()), DAPO_SOURCE))


def _dapo_problem(text: str) -> str:
    """The problem without the request around it; a text that has none as it is."""
    text = text.strip()
    if text.startswith(_DAPO_BEFORE) and text.endswith(_DAPO_AFTER):
        text = text.removesuffix(_DAPO_AFTER).partition("\n\n")[2]
    return text.strip()


def _read_deepscaler(source: Path) -> Iterable[tuple[str, Row]]:
    if source.is_dir():
        found = next((source / name for name in _DEEPSCALER_FILES if (source / name).is_file()), None)
        if found is None:
            raise UserError(f"{source} holds none of {', '.join(_DEEPSCALER_FILES)}", "name the file itself")
        source = found
    return read_files(str(source), "source")


def _take[T](raw: Iterable[tuple[str, Row]], limit: int | None, convert: Callable[[str, Row, int], T]) -> list[T]:
    taken = []
    for index, (place, row) in enumerate(raw):
        if limit is not None and index >= limit:
            break
        taken.append(convert(place, row, index))
    return taken


def _texts(place: str, row: Row, *columns: str) -> tuple[str, ...]:
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise UserError(
                f"{place}: column {column!r} is missing or holds no text; columns: {', '.join(row)}",
                f"use the raw files, with the columns {' and '.join(columns)}",
            )
    return tuple(row[column] for column in columns)


def _verl_row(source: str, question: str, suffix: str, truth: str, split: str, index: int, answer: str) -> Row:
    """One row in the schema that verl and siiRL users have."""
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": question + suffix}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"split": split, "index": index, "answer": answer, "question": question},
    }


def _write(out_dir: Path, splits: Mapping[str, Sequence[Row]]) -> Prepared:
    import pyarrow
    import pyarrow.parquet

    for split, rows in splits.items():
        if not rows:
            raise UserError(f"the {split} split has no rows", "check the source, or raise the limit")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), out_dir / f".{split}.parquet.partial")
        for split in splits:
            os.replace(out_dir / f".{split}.parquet.partial", out_dir / f"{split}.parquet")
    except OSError as error:
        raise UserError(f"{out_dir} cannot be written: {error}", "choose another output directory") from error
    return Prepared(out_dir / "train.parquet", out_dir / "test.parquet", len(splits["train"]), len(splits["test"]))


RECIPES: Mapping[str, Callable[[str | Path | None, str | Path, int | None], Prepared]] = {
    "gsm8k": prepare_gsm8k,
    "deepscaler": prepare_deepscaler,
    "math": prepare_math,
    "dapo-math": prepare_dapo,
}
