"""Making rows from records.

Invariant: every record becomes one complete row, or the source is refused with the place that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pentad.data.columns import TRUTH_SPECS, Columns, find
from pentad.data.rows import Message, PromptRow, check_text, parse_messages, parse_prompt
from pentad.errors import UserError

Record = tuple[str, Mapping[str, Any]]


class Parser:
    """Makes rows of one source.

    Args:
        columns: which column is what.
        with_response: rows for supervised training, else prompts that are to be answered.

    Attributes:
        trailing: conversations after whose last answer somebody speaks; those messages were left out.
        answers: conversations whose last answer was taken for the ground truth.
    """

    def __init__(self, columns: Columns, *, with_response: bool) -> None:
        self._columns, self._with_response = columns, with_response
        self.trailing = 0
        self.answers = 0

    def rows(self, records: Sequence[Record]) -> Iterator[PromptRow]:
        """A row for each record.

        Raises:
            UserError: a column is missing in one, or of a wrong type.
        """
        for row_id, record in records:
            data_source = record.get("data_source", "")
            if not isinstance(data_source, str):
                raise UserError(
                    f"{row_id}: column 'data_source' is of type {type(data_source).__name__}, not a string",
                    "make it a string",
                )
            row = PromptRow(row_id, "", data_source, extra=_extra(row_id, record))
            make = self._conversation if self._columns.conversation else self._pair
            yield make(row, record)

    def _pair(self, row: PromptRow, record: Mapping[str, Any]) -> PromptRow:
        columns, name = self._columns, self._columns.prompt or ""
        value = find(record, name)
        if value is None and name.partition(".")[0] not in record:
            raise UserError(
                f"{row.id}: there is no column {name!r}; columns: {', '.join(record) or 'none'}",
                f"give every row a {name!r}, or set data.prompt_column to a column that every row has",
            )
        prompt = _with_context(parse_prompt(value, row.id, name), record, columns, row.id)
        if not self._with_response:
            return replace(row, prompt=prompt, ground_truth=_ground_truth(row.id, record, columns))
        response = find(record, columns.response or "")
        if isinstance(response, list | tuple):
            return self._completed(row, prompt, parse_messages(response, row.id, columns.response or ""))
        return replace(row, prompt=prompt, response=_response(row.id, record, columns.response or ""))

    def _completed(
        self, row: PromptRow, prompt: str | tuple[Message, ...], completion: tuple[Message, ...]
    ) -> PromptRow:
        """A row whose response is given as messages."""
        before = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        if completion[-1]["role"] != "assistant":
            raise UserError(
                f"{row.id}: the response ends with the role {completion[-1]['role']!r}", "end it with the assistant's"
            )
        if len(completion) == 1:
            return replace(row, prompt=prompt, response=completion[0]["content"])
        return replace(row, prompt=before, conversation=(*before, *completion), first=len(before))

    def _conversation(self, row: PromptRow, record: Mapping[str, Any]) -> PromptRow:
        columns, name = self._columns, self._columns.conversation or ""
        messages = parse_messages(find(record, name), row.id, name)
        if columns.system and (system := record.get(columns.system)) and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": system}, *messages)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not self._with_response:
            return self._asked(row, record, messages, answers)
        if not answers or answers[0] == 0:
            why = "has no message of the assistant" if not answers else "begins with the assistant"
            raise UserError(f"{row.id}: the conversation in {name!r} {why}", "fix or remove the row")
        self.trailing += answers[-1] < len(messages) - 1
        return replace(row, prompt=messages[: answers[-1]], conversation=messages[: answers[-1] + 1])

    def _asked(
        self, row: PromptRow, record: Mapping[str, Any], messages: tuple[Message, ...], answers: list[int]
    ) -> PromptRow:
        """A conversation as a prompt: up to its end, or to the last answer if that is its end."""
        truth = _ground_truth(row.id, record, self._columns)
        if answers and answers[-1] == len(messages) - 1:
            if truth is None and self._columns.truth is None and self._columns.spec is None:
                truth = messages[-1]["content"]
                self.answers += 1
            messages = messages[:-1]
        return replace(row, prompt=parse_prompt(messages, row.id, self._columns.conversation or ""), ground_truth=truth)


def _with_context(
    prompt: str | tuple[Message, ...], record: Mapping[str, Any], columns: Columns, row_id: str
) -> str | tuple[Message, ...]:
    """A prompt of text with the columns beside it: `input`, `system`, `history`."""
    if not isinstance(prompt, str):
        return prompt
    if columns.context and (context := record.get(columns.context)):
        if not isinstance(context, str):
            raise UserError(f"{row_id}: column {columns.context!r} is no text", "make it text, or leave it empty")
        prompt = f"{prompt}\n\n{context}"
    before: list[Message] = []
    if columns.system and (system := record.get(columns.system)):
        before.append({"role": "system", "content": system})
    for pair in (record.get(columns.history) or ()) if columns.history else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(t, str) and t for t in pair):
            raise UserError(f"{row_id}: column {columns.history!r} is no list of pairs of texts", "fix the row")
        before += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return (*before, {"role": "user", "content": prompt}) if before else prompt


def _ground_truth(row_id: str, record: Mapping[str, Any], columns: Columns) -> Any:
    for name in TRUTH_SPECS if columns.spec else ():
        spec = record.get(name)
        if spec is None:
            continue
        if not isinstance(spec, Mapping) or _present(spec.get("ground_truth")) is None:
            raise UserError(
                f"{row_id}: column {name!r} has no 'ground_truth'",
                "make it {style: rule, ground_truth: ...}, or set data.ground_truth_column to another column",
            )
        return spec["ground_truth"]
    return _present(find(record, columns.truth)) if columns.truth else None


def _extra(row_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
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


def _response(row_id: str, record: Mapping[str, Any], column: str) -> str:
    response = find(record, column)
    if response is None and column.partition(".")[0] not in record:
        raise UserError(
            f"{row_id}: there is no column {column!r}; columns: {', '.join(record) or 'none'}",
            f"give every row a {column!r}, or set data.response_column to a column that every row has",
        )
    if not isinstance(response, str) or not response:
        found = "empty" if response == "" else f"of type {type(response).__name__}"
        raise UserError(
            f"{row_id}: column {column!r} is {found}; supervised training needs text to learn from",
            "set data.response_column to a column of strings, or fix the row",
        )
    check_text(response, f"{row_id}: column {column!r}")
    return response
