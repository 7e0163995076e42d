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
from pentad.data.rows import PromptRow
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
    """Rows that were kept with their prompt and response tokens (int64), and how many were dropped."""

    # Examples of each row.
    per_row: ClassVar[int] = 1

    rows: tuple[PromptRow, ...]
    examples: tuple[tuple[Tensor, Tensor], ...]
    dropped: int

    def __len__(self) -> int:
        return len(self.rows)


def encode_prompts(rows: Sequence[PromptRow], tokenizer: Tokenizer, settings: DataSettings) -> EncodedPrompts:
    """Tokens of each prompt, ready to be answered: with the chat template up to the assistant's turn, or as text.

    Raises:
        UserError: the tokenizer has no chat template or refuses a conversation, a setting does not fit the template,
            or a prompt is empty or (unless `data.too_long=drop`) too long.
    """
    _check_template(tokenizer, settings)
    encoded = [_encode(row, tokenizer, settings) for row in rows]
    lengths = [len(tokens) for tokens in encoded]
    too_long = [i for i, length in enumerate(lengths) if length > settings.max_prompt_tokens]
    if too_long and (settings.too_long == "error" or len(too_long) == len(rows)):
        first = too_long[0]
        which = "all prompts" if len(too_long) == len(rows) else f"{len(too_long)} of {len(rows)} prompts"
        fix = f"set data.max_prompt_tokens={max(lengths)}"
        if len(too_long) < len(rows):
            fix += ", or data.too_long=drop to train without them"
        raise UserError(
            f"{which} are longer than data.max_prompt_tokens={settings.max_prompt_tokens}; "
            f"the first is {rows[first].id} with {lengths[first]} tokens",
            fix,
        )
    dropped = set(too_long)
    kept = [i for i in range(len(rows)) if i not in dropped]
    return EncodedPrompts(tuple(rows[i] for i in kept), tuple(encoded[i] for i in kept), len(dropped))


def encode_examples(rows: Sequence[PromptRow], tokenizer: Tokenizer, settings: DataSettings) -> EncodedExamples:
    """Prompt tokens as `encode_prompts` gives them, and response tokens that end with the end-of-sequence token.

    Prompt and response are encoded apart, as they are when the model answers.

    Raises:
        UserError: as `encode_prompts`, or the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, so the model could not learn where to stop",
            "set model.tokenizer to one that has it",
        )
    prompts = encode_prompts(rows, tokenizer, settings)
    examples = []
    for row, prompt in zip(prompts.rows, prompts.tokens, strict=True):
        if row.response is None:
            raise ValueError(f"{row.id} was loaded without its response")
        response = tokenizer(row.response, add_special_tokens=False)["input_ids"]
        examples.append((prompt, torch.tensor([*response, tokenizer.eos_token_id], dtype=torch.int64)))
    return EncodedExamples(prompts.rows, tuple(examples), prompts.dropped)


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
            raise UserError(
                f"{row.id}: the prompt is a conversation, but data.template=text needs plain text",
                "set data.template=chat, or write the prompts as strings",
            )
        tokens = tokenizer(row.prompt)["input_ids"]
    else:
        # The template writes the special tokens itself.
        tokens = tokenizer(_render(row, tokenizer, settings), add_special_tokens=False)["input_ids"]
    if not tokens:
        raise UserError(f"{row.id}: the prompt has no tokens", "give the row a prompt, or remove it")
    return torch.tensor(tokens, dtype=torch.int64)


def _render(row: PromptRow, tokenizer: Tokenizer, settings: DataSettings) -> str:
    import jinja2

    messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else list(row.prompt)
    if settings.system_prompt is not None:
        if messages[0]["role"] == "system":
            raise UserError(
                f"{row.id}: the conversation has a system message, and data.system_prompt is set too",
                "remove data.system_prompt, or the system messages of the data",
            )
        messages = [{"role": "system", "content": settings.system_prompt}, *messages]
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"{row.id}: the chat template refuses a conversation of the roles {roles}: {error}",
            "change the conversation (or data.system_prompt), or set model.chat_template=FILE",
        ) from error
