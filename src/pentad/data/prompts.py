"""Turning rows into tokens.

Invariant: a prompt that comes out is never empty, never longer than `data.max_prompt_tokens`, and stands at the
place of its row; rows that were dropped are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pentad.config.schema.data import DataSettings
from pentad.data.conversations import EncodedConversation, encode_conversation, render
from pentad.data.rows import Message, PromptRow
from pentad.errors import UserError

Tokenizer = Any  # a transformers tokenizer; importing its class for a hint would cost seconds


@dataclass(frozen=True)
class EncodedPrompts:
    """Rows that were kept, their tokens (int64 `[P]` each) at the same index, and how many were dropped."""

    rows: tuple[PromptRow, ...]
    tokens: tuple[Tensor, ...]
    dropped: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class EncodedExamples:
    """Rows that were kept with their prompt and response tokens (int64), and how many were dropped.

    `masks[i]`, bool `[R]`, says which tokens of response i are trained on; None: all are. Without masks all are of all.
    """

    # Examples of each row.
    per_row: ClassVar[int] = 1

    rows: tuple[PromptRow, ...]
    examples: tuple[tuple[Tensor, Tensor], ...]
    dropped: int
    masks: tuple[Tensor | None, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def mask(self, index: int) -> Tensor:
        """Bool `[R]`: which tokens of the response at `index` are trained on."""
        mask = self.masks[index] if self.masks else None
        return torch.ones(len(self.examples[index][1]), dtype=torch.bool) if mask is None else mask


def encode_prompts(rows: Sequence[PromptRow], tokenizer: Tokenizer, settings: DataSettings) -> EncodedPrompts:
    """Tokens of each prompt, ready to be answered: with the chat template up to the assistant's turn, or as text.

    Raises:
        UserError: the tokenizer has no chat template or refuses a conversation, a setting does not fit the template,
            or a prompt is empty or (unless `data.too_long=drop`) too long.
    """
    _check_template(tokenizer, settings)
    encoded = [_encode(row, tokenizer, settings) for row in rows]
    lengths = [len(tokens) for tokens in encoded]
    kept = _fitting(rows, lengths, settings.max_prompt_tokens, "data.max_prompt_tokens", "prompts", settings)
    return EncodedPrompts(tuple(rows[i] for i in kept), tuple(encoded[i] for i in kept), len(rows) - len(kept))


def _fitting(
    rows: Sequence[PromptRow], lengths: Sequence[int], limit: int, setting: str, noun: str, settings: DataSettings
) -> list[int]:
    """Indices of what is no longer than the limit.

    Raises:
        UserError: something is longer and may not be dropped, or everything is.
    """
    too_long = [i for i, length in enumerate(lengths) if length > limit]
    if too_long and (settings.too_long == "error" or len(too_long) == len(rows)):
        first = too_long[0]
        which = f"all {noun}" if len(too_long) == len(rows) else f"{len(too_long)} of {len(rows)} {noun}"
        fix = f"set {setting}={max(lengths)}"
        if len(too_long) < len(rows):
            fix += ", or data.too_long=drop to train without them"
        raise UserError(
            f"{which} are longer than {setting}={limit}; the first is {rows[first].id} with {lengths[first]} tokens",
            fix,
        )
    dropped = set(too_long)
    return [i for i in range(len(rows)) if i not in dropped]


def encode_examples(rows: Sequence[PromptRow], tokenizer: Tokenizer, settings: DataSettings) -> EncodedExamples:
    """Prompt tokens as `encode_prompts` gives them, and response tokens that end with the end-of-sequence token.

    Prompt and response are encoded apart, as they are when the model answers. Of a row with a conversation, the
    response is what follows the first token that is trained on; see `pentad.data.conversations`.

    Raises:
        UserError: as `encode_prompts`, or the tokenizer has no end-of-sequence token, or an example is longer than
            `data.max_tokens`.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, so the model could not learn where to stop",
            "set model.tokenizer to one that has it",
        )
    _check_template(tokenizer, settings)
    examples: list[tuple[Tensor, Tensor]] = []
    masks: list[Tensor | None] = []
    for row in rows:
        if row.conversation is not None:
            found = _encode_turns(row, tokenizer, settings)
            examples.append((found.prompt, found.rest))
            masks.append(None if bool(found.mask.all()) else found.mask)
            continue
        prompt = _encode(row, tokenizer, settings)
        if row.response is None:
            raise ValueError(f"{row.id} was loaded without its response")
        response = tokenizer(row.response, add_special_tokens=False)["input_ids"]
        examples.append((prompt, torch.tensor([*response, tokenizer.eos_token_id], dtype=torch.int64)))
        masks.append(None)
    kept = _fitting(
        rows, [len(e[0]) for e in examples], settings.max_prompt_tokens, "data.max_prompt_tokens", "prompts", settings
    )
    if settings.max_tokens is not None:
        lengths = [len(examples[i][0]) + len(examples[i][1]) for i in kept]
        fitting = _fitting(
            [rows[i] for i in kept], lengths, settings.max_tokens, "data.max_tokens", "examples", settings
        )
        kept = [kept[i] for i in fitting]
    masked = tuple(masks[i] for i in kept) if any(mask is not None for mask in masks) else ()
    return EncodedExamples(
        tuple(rows[i] for i in kept), tuple(examples[i] for i in kept), len(rows) - len(kept), masked
    )


def _encode_turns(row: PromptRow, tokenizer: Tokenizer, settings: DataSettings) -> EncodedConversation:
    """A conversation as tokens."""
    if settings.template == "text":
        raise _not_text(row)
    assert row.conversation is not None
    messages, added = list(row.conversation), 0
    if settings.system_prompt is not None:
        messages = _with_system(row, messages, settings.system_prompt)
        added = 1
    return encode_conversation(
        messages, tokenizer, first=row.first + added, last_only=settings.loss_on == "last", row_id=row.id
    )


def _check_template(tokenizer: Tokenizer, settings: DataSettings) -> None:
    if settings.template == "chat" and not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template", "set data.template=text, or model.chat_template=FILE to give it one"
        )
    if settings.template == "text" and settings.system_prompt is not None:
        raise UserError(
            "data.system_prompt is set, but data.template=text uses the prompts as they are",
            "remove data.system_prompt, or set data.template=chat",
        )


def _encode(row: PromptRow, tokenizer: Tokenizer, settings: DataSettings) -> Tensor:
    if settings.template == "text":
        if not isinstance(row.prompt, str):
            raise _not_text(row)
        tokens = tokenizer(row.prompt)["input_ids"]
    else:
        # The template writes the special tokens itself.
        tokens = tokenizer(_render(row, tokenizer, settings), add_special_tokens=False)["input_ids"]
    if not tokens:
        raise UserError(f"{row.id}: the prompt has no tokens", "give the row a prompt, or remove it")
    return torch.tensor(tokens, dtype=torch.int64)


def _not_text(row: PromptRow) -> UserError:
    return UserError(
        f"{row.id}: the prompt is a conversation, but data.template=text needs plain text",
        "set data.template=chat, or write the prompts as strings",
    )


def _render(row: PromptRow, tokenizer: Tokenizer, settings: DataSettings) -> str:
    messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else list(row.prompt)
    if settings.system_prompt is not None:
        messages = _with_system(row, messages, settings.system_prompt)
    return render(messages, tokenizer, row.id, answer=True)


def _with_system(row: PromptRow, messages: list[Message], text: str) -> list[Message]:
    if messages[0]["role"] == "system":
        raise UserError(
            f"{row.id}: the conversation has a system message, and data.system_prompt is set too",
            "remove data.system_prompt, or the system messages of the data",
        )
    return [{"role": "system", "content": text}, *messages]
