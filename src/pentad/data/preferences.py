"""Rows with a chosen and a rejected response as tokens.

Invariant: the chosen response of row i stands at place 2 i of `examples`, the rejected one at 2 i + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pentad.config.schema.data import DataSettings
from pentad.data.prompts import EncodedExamples, Tokenizer, encode_prompts
from pentad.data.rows import PromptRow, check_text
from pentad.errors import UserError


@dataclass(frozen=True)
class EncodedPreferences(EncodedExamples):
    """Rows that were kept, and two examples (prompt and response tokens, int64) of each."""

    per_row = 2


def encode_preferences(rows: Sequence[PromptRow], tokenizer: Tokenizer, settings: DataSettings) -> EncodedPreferences:
    """Prompt tokens as `encode_prompts` gives them, and tokens of both responses, which end as an answer does.

    Raises:
        UserError: as `encode_prompts`; the tokenizer has no end-of-sequence token; or a row lacks a response, or has
            two that are the same.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, so the model could not learn where to stop",
            "set model.tokenizer to one that has it",
        )
    prompts = encode_prompts(rows, tokenizer, settings)
    examples = []
    for row, prompt in zip(prompts.rows, prompts.tokens, strict=True):
        both = [
            _response(row, settings.chosen_column, "data.chosen_column"),
            _response(row, settings.rejected_column, "data.rejected_column"),
        ]
        if both[0] == both[1]:
            raise UserError(
                f"{row.id}: columns {settings.chosen_column!r} and {settings.rejected_column!r} are the same; nothing "
                "can be learnt from that",
                "remove the row",
            )
        for text in both:
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            examples.append((prompt, torch.tensor([*tokens, tokenizer.eos_token_id], dtype=torch.int64)))
    return EncodedPreferences(prompts.rows, tuple(examples), prompts.dropped)


def _response(row: PromptRow, column: str, setting: str) -> str:
    """The text of a column: a string, or the last message of a conversation, which the assistant has written."""
    if column not in row.extra:
        columns = ", ".join(row.extra) or "none"
        raise UserError(f"{row.id}: there is no column {column!r}; columns: {columns}", f"set {setting} to one of them")
    value: Any = row.extra[column]
    if isinstance(value, list | tuple) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content") if value[-1].get("role") == "assistant" else None
    if not isinstance(value, str) or not value:
        raise UserError(
            f"{row.id}: column {column!r} is neither text nor a conversation that ends with the assistant",
            f"set {setting} to a column of responses, or fix the row",
        )
    check_text(value, f"{row.id}: column {column!r}")
    return value
