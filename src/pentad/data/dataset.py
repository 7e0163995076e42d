"""Reading rows from files, the hubs and reasoning_gym.

Invariant: every row of a source becomes one `PromptRow`, in order, or the source is refused with the place that is
wrong. Nothing is skipped, and no column is taken unsaid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

from pentad.config.schema.data import DataSettings
from pentad.data.columns import choose_columns
from pentad.data.files import read_files
from pentad.data.hub import HUB, MODELSCOPE, read_hub, read_modelscope
from pentad.data.parsing import Parser
from pentad.data.procedural import PREFIX as PROCEDURAL
from pentad.data.procedural import read_procedural
from pentad.data.rows import PromptRow, Rows
from pentad.errors import UserError

Role = Literal["train", "eval"]


def load_train_rows(
    settings: DataSettings, evals: Mapping[str, Rows] | None = None, *, with_response: bool = False
) -> Rows:
    """The rows of `data.train`, of all of its sources; see `load_rows`.

    Args:
        evals: rows of the evaluations. Generated problems whose questions stand in one of them are left out, however
            often they were generated. Rows of files and of the hub stay: which of them to train on is the user's
            choice; `shared_prompts` counts them.

    Raises:
        UserError: as `load_rows`, or every generated problem is evaluated on.
    """
    parts = []
    for number, source in enumerate(settings.sources):
        setting = "data.train" if isinstance(settings.train, str) else f"data.train[{number}]"
        rows = load_rows(source, settings, setting=setting, with_response=with_response)
        rows = _without_evaluated(rows, evals or {}, setting)
        parts.append(replace(rows, rows=tuple(replace(row, source=number) for row in rows)) if number else rows)
    if not parts:
        raise UserError("data.train is an empty list", "name at least one source")
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[Rows]) -> Rows:
    rows = tuple(row for part in parts for row in part)
    said = tuple(line for part in parts for line in part.said)
    return Rows(", ".join(part.source for part in parts), rows, sum(part.held_out for part in parts), said)


def _without_evaluated(rows: Rows, evals: Mapping[str, Rows], setting: str) -> Rows:
    """Generated rows without those that are evaluated on; other rows as they are."""
    if not rows.source.startswith(PROCEDURAL):
        return rows
    questions = {row.prompt for others in evals.values() for row in others}
    kept = tuple(row for row in rows if row.prompt not in questions)
    if not kept:
        raise UserError(
            f"all {len(rows)} problems of {setting}={rows.source} are problems of an evaluation too, so that none "
            "is left to train on",
            "set data.eval_limit lower, or change data.options so that the task has more different problems",
        )
    return Rows(rows.source, kept, len(rows) - len(kept), rows.said)


def load_eval_rows(settings: DataSettings, *, with_response: bool = False) -> dict[str, Rows]:
    """The rows of each evaluation by its name, at most as many as its limit; see `load_rows`.

    Args:
        with_response: of what is not generated, read wanted responses (supervised training).
    """
    return {
        name: load_rows(
            one.source,
            settings,
            role="eval",
            setting=f"data.eval.{name}",
            with_response=with_response and not one.generates,
            limit=one.limit,
        )
        for name, one in settings.eval.items()
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
    limit: int | None = None,
) -> Rows:
    """Read one source.

    Args:
        source: as `data.train` names one.
        settings: columns, options and limits.
        role: `eval` stops after `data.eval_limit` rows unless `limit` is given, and takes the test or validation split
            of a hub dataset and fresh seeds of reasoning_gym where the source does not say.
        setting: names the setting that holds `source`, for messages.
        with_response: read wanted responses or whole conversations (supervised training).
        limit: read only the first so many rows.

    `pentad.data.columns` says which columns are taken for what. All columns of a row are passed on to the reward.

    Raises:
        UserError: the source is missing, unreadable, empty or lacks a column, or a row is of a wrong type.
    """
    if role == "eval" and limit is None:
        limit = settings.eval_limit
    procedural = source.startswith(PROCEDURAL)
    if settings.options and not any(s.startswith(PROCEDURAL) for s in settings.all_sources):
        raise UserError("data.options is set, but only reasoning_gym sources have options", "remove data.options")
    if procedural:
        if with_response:
            raise UserError(
                f"{setting}={source} has no wanted responses to learn from",
                "use algorithm.name=grpo, or a file with a column 'response'",
            )
        rows: tuple[PromptRow, ...] = tuple(
            read_procedural(source, settings.options, role=role, setting=setting, limit=limit)
        )
        said: tuple[str, ...] = ()
    else:
        rows, said = _read(source, settings, role, setting, with_response, limit)
    if not rows:
        raise UserError(f"{setting}={source} has no rows", f"point {setting} at data that has some")
    return Rows(source, rows, said=said)


def _read(
    source: str, settings: DataSettings, role: Role, setting: str, with_response: bool, limit: int | None
) -> tuple[tuple[PromptRow, ...], tuple[str, ...]]:
    """The rows of files or of a hub, and what was taken for what."""
    if source.startswith(HUB):
        found = read_hub(source, role, setting)
    elif source.startswith(MODELSCOPE):
        found = read_modelscope(source, role, setting)
    else:
        found = read_files(source, setting)
    records = list(islice(found, limit))
    if not records:
        return (), ()
    columns = choose_columns(records, settings, setting, with_response)
    parser = Parser(columns, with_response=with_response)
    rows = tuple(parser.rows(records))
    said = [f"{setting}: {columns.sentence()}"]
    if parser.answers:
        said[0] += f", without the last answer of {parser.answers}, which is the ground truth"
    if parser.trailing:
        said.append(
            f"{setting}: {parser.trailing} of {len(rows)} conversations go on after their last answer; what comes "
            "after it is left out"
        )
    return rows, tuple(said)
