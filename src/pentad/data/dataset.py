"""Reading prompts from files, the Hugging Face hub and reasoning_gym.

Invariant: every row of a source becomes one `PromptRow`, in order, or the source is refused with the place that is
wrong. Nothing is skipped, and no column is guessed.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pentad.config.schema.data import DataSettings
from pentad.data.files import read_files
from pentad.data.hub import read_hub
from pentad.data.procedural import PREFIX as PROCEDURAL
from pentad.data.procedural import read_procedural
from pentad.data.rows import PromptRow, Rows, check_text, parse_prompt
from pentad.errors import UserError

HUB = "hf:"
TRUTH_COLUMNS = ("ground_truth", "answer")

Role = Literal["train", "eval"]


def load_train_rows(
    settings: DataSettings, evals: Mapping[str, Rows] | None = None, *, with_response: bool = False
) -> Rows:
    """The rows of `data.train`; see `load_rows`.

    Args:
        evals: rows of the evaluations. Generated problems whose questions stand in one of them are left out, however
            often they were generated. Rows of files and of the hub stay: which of them to train on is the user's
            choice; `shared_prompts` counts them.

    Raises:
        UserError: as `load_rows`, or every generated problem is evaluated on.
    """
    rows = load_rows(settings.train, settings, with_response=with_response)
    if not settings.train.startswith(PROCEDURAL):
        return rows
    questions = {row.prompt for others in (evals or {}).values() for row in others}
    kept = tuple(row for row in rows if row.prompt not in questions)
    if not kept:
        raise UserError(
            f"all {len(rows)} problems of data.train={settings.train} are problems of an evaluation too, so that none "
            "is left to train on",
            "set data.eval_limit lower, or change data.options so that the task has more different problems",
        )
    return Rows(rows.source, kept, len(rows) - len(kept))


def load_eval_rows(settings: DataSettings, *, with_response: bool = False) -> dict[str, Rows]:
    """The rows of each source of `data.eval` by its name, at most `data.eval_limit` of each; see `load_rows`."""
    return {
        name: load_rows(source, settings, role="eval", setting=f"data.eval.{name}", with_response=with_response)
        for name, source in settings.eval.items()
    }


def shared_prompts(train: Rows, evaluation: Rows) -> int:
    """How many rows of an evaluation ask what a training row asks."""
    trained = {_key(row) for row in train}
    return sum(_key(row) in trained for row in evaluation)


def _key(row: PromptRow) -> str:
    return row.prompt if isinstance(row.prompt, str) else json.dumps(row.prompt)


def load_rows(
    source: str,
    settings: DataSettings,
    *,
    role: Role = "train",
    setting: str = "data.train",
    with_response: bool = False,
) -> Rows:
    """Read one source.

    Args:
        source: a .jsonl or .parquet file, a directory of them, `hf:NAME[:CONFIG][:SPLIT]`, or
            `reasoning_gym:TASK[+TASK...][?OPTION=VALUE&...]`.
        settings: columns, options and limits.
        role: `eval` stops after `data.eval_limit` rows, and takes the test or validation split of a hub dataset
            and fresh seeds of reasoning_gym where the source does not say.
        setting: names the setting that holds `source`, for messages.
        with_response: read `data.response_column` too (supervised training).

    Two shapes of row are understood: the verl / siiRL one (`data_source`, `prompt`, `ability`,
    `reward_model: {style, ground_truth}`, `extra_info`), and a flat one, with a prompt column, optionally
    `ground_truth` or `answer`, and any other columns. All columns of a row are passed on to the reward.

    Raises:
        UserError: the source is missing, unreadable, empty or lacks a column, or a row is of a wrong type.
    """
    limit = settings.eval_limit if role == "eval" else None
    procedural = source.startswith(PROCEDURAL)
    if settings.options and not any(s.startswith(PROCEDURAL) for s in (settings.train, *settings.eval.values())):
        raise UserError("data.options is set, but only reasoning_gym sources have options", "remove data.options")
    if procedural:
        if with_response:
            raise UserError(
                f"{setting}={source} has no wanted responses to learn from",
                f"use algorithm.name=grpo, or a file with the column {settings.response_column!r}",
            )
        rows = tuple(read_procedural(source, settings.options, role=role, setting=setting, limit=limit))
    else:
        records = read_hub(source, role, setting) if source.startswith(HUB) else read_files(source, setting)
        rows = tuple(_parse_rows(records, settings, limit, with_response))
    if not rows:
        raise UserError(f"{setting}={source} has no rows", f"point {setting} at data that has some")
    return Rows(source, rows)


def _parse_rows(
    records: Iterator[tuple[str, Mapping[str, Any]]], settings: DataSettings, limit: int | None, with_response: bool
) -> Iterator[PromptRow]:
    for count, (row_id, record) in enumerate(records):
        if limit is not None and count >= limit:
            return
        yield _parse_row(row_id, record, settings, with_response)


def _parse_row(row_id: str, record: Mapping[str, Any], settings: DataSettings, with_response: bool) -> PromptRow:
    column = settings.prompt_column
    if column not in record:
        raise _missing_column(row_id, record, column, "data.prompt_column")
    prompt = parse_prompt(record[column], row_id, column)
    response = None
    if with_response:
        response = _parse_response(row_id, record, settings.response_column)
    data_source = record.get("data_source", "")
    if not isinstance(data_source, str):
        raise UserError(
            f"{row_id}: column 'data_source' is of type {type(data_source).__name__}, not a string", "make it a string"
        )
    return PromptRow(
        row_id, prompt, data_source, _ground_truth(row_id, record, settings), _columns(row_id, record), response
    )


def _ground_truth(row_id: str, record: Mapping[str, Any], settings: DataSettings) -> Any:
    reward_model = record.get("reward_model")
    if reward_model is None:
        taken = (settings.prompt_column, settings.response_column)
        column = next((name for name in TRUTH_COLUMNS if name in record and name not in taken), None)
        return _present(record[column]) if column else None
    if not isinstance(reward_model, Mapping) or _present(reward_model.get("ground_truth")) is None:
        raise UserError(
            f"{row_id}: column 'reward_model' has no 'ground_truth'", "make it {style: rule, ground_truth: ...}"
        )
    return reward_model["ground_truth"]


def _columns(row_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """All columns of a row, as they are; `extra_info`, whose entries rewards may ask for, is a mapping or null."""
    info = record.get("extra_info")
    if info is not None and not isinstance(info, Mapping):
        raise UserError(
            f"{row_id}: column 'extra_info' is of type {type(info).__name__}, not a mapping", "make it one, or drop it"
        )
    return dict(record)


def _present(value: Any) -> Any:
    """The value, or None for NaN: pandas writes that where a value is missing."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _parse_response(row_id: str, record: Mapping[str, Any], column: str) -> str:
    if column not in record:
        raise _missing_column(row_id, record, column, "data.response_column")
    response = record[column]
    if not isinstance(response, str) or not response:
        found = "empty" if response == "" else f"of type {type(response).__name__}"
        raise UserError(
            f"{row_id}: column {column!r} is {found}; supervised training needs text to learn from",
            "set data.response_column to a column of strings, or fix the row",
        )
    check_text(response, f"{row_id}: column {column!r}")
    return response


def _missing_column(row_id: str, record: Mapping[str, Any], column: str, setting: str) -> UserError:
    present = ", ".join(record) or "none"
    cause = f"{row_id}: there is no column {column!r}; columns: {present}"
    if setting == "data.prompt_column" and {"question", "answer"} <= record.keys():
        return UserError(cause, "this looks like raw GSM8K: run `pentad data gsm8k` and use the files that it writes")
    if setting == "data.prompt_column" and {"problem", "answer"} <= record.keys():
        return UserError(
            cause, "this looks like raw DeepScaleR: run `pentad data deepscaler` and use the files that it writes"
        )
    nearest = difflib.get_close_matches(column, list(record), 1)
    return UserError(cause, f"set {setting}={nearest[0]}" if nearest else f"set {setting} to one of those columns")
