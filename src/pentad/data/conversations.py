"""Tokens of whole conversations, and which of them are trained on.

Invariant: the text that is tokenized is the template's own rendering of the conversation, up to the end of the last
answer; the tokens that are trained on are those that the model would have generated, from the end of the generation
prompt through the token that ends its turn. Runs of text are tokenized apart, as prompt and answer are at generation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pentad.data.rows import Message
from pentad.errors import UserError

Tokenizer = Any  # a transformers tokenizer; importing its class for a hint would cost seconds
Span = tuple[int, int]

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as tokens.

    Attributes:
        prompt: int64 `[P]`: what comes before the first token that is trained on.
        rest: int64 `[R]`.
        mask: bool `[R]`: which of `rest` are trained on.
    """

    prompt: Tensor
    rest: Tensor
    mask: Tensor


def encode_conversation(
    messages: Sequence[Message], tokenizer: Tokenizer, *, first: int, last_only: bool, row_id: str
) -> EncodedConversation:
    """Encode a conversation that ends with the assistant.

    Where the chat template marks what is generated (`{% generation %}`), its marks decide. Otherwise the rendering up
    to each turn, with the generation prompt, must be the beginning of the whole; what follows is the turn.

    Args:
        first: index of the first message that may be trained on.
        last_only: train on the last turn alone.
        row_id: the place of the row, for messages.

    Raises:
        UserError: the template refuses the conversation, writes an earlier turn otherwise than the model generates it,
            or does not end a turn with a special token.
    """
    text, spans = _spans(messages, tokenizer, first, last_only, row_id)
    cuts = [0, *(end for span in spans for end in span), len(text)]
    pieces = [
        tokenizer(text[begin:end], add_special_tokens=False)["input_ids"] if end > begin else []
        for begin, end in pairwise(cuts)
    ]
    # Pieces are trained on by turns: before, turn, between, turn, ..., after.
    tokens = [token for piece in pieces[1:] for token in piece]
    mask = [bool(number % 2) for number, piece in enumerate(pieces[1:], start=1) for _ in piece]
    if not pieces[0] or not any(mask):
        raise UserError(f"{row_id}: the conversation has no {'prompt' if any(mask) else 'answer'}", "remove the row")
    trained = max(index for index, on in enumerate(mask) if on) + 1  # what follows the last turn has no use
    return EncodedConversation(
        torch.tensor(pieces[0], dtype=torch.int64),
        torch.tensor(tokens[:trained], dtype=torch.int64),
        torch.tensor(mask[:trained], dtype=torch.bool),
    )


def _spans(
    messages: Sequence[Message], tokenizer: Tokenizer, first: int, last_only: bool, row_id: str
) -> tuple[str, list[Span]]:
    """The rendering and the runs of it that are trained on."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
    turns = turns[-1:] if last_only else turns
    if _MARKS.search(tokenizer.chat_template):
        text, marked = _marked(messages, tokenizer, row_id)
        before = len(_marked(messages[: turns[0]], tokenizer, row_id)[1])
        return text, marked[before:]
    text = render(messages, tokenizer, row_id)
    return text, [_span(messages, turn, text, tokenizer, row_id) for turn in turns]


def _span(messages: Sequence[Message], turn: int, text: str, tokenizer: Tokenizer, row_id: str) -> Span:
    """Where the turn of message `turn` stands in the rendering of all."""
    begin = render(messages[:turn], tokenizer, row_id, answer=True)
    whole = render(messages[: turn + 1], tokenizer, row_id)
    if not whole.startswith(begin) or not text.startswith(begin):
        raise UserError(
            f"{row_id}: the chat template writes message {turn} otherwise than after its generation prompt, so that "
            "what the model would generate cannot be told",
            "set model.chat_template=FILE, a template that marks answers with {% generation %}",
        )
    end = _end_of_turn(whole, len(begin), tokenizer, row_id)
    if text[:end] != whole[:end]:
        raise UserError(
            f"{row_id}: the chat template writes message {turn} otherwise once others follow it (it may leave out "
            "reasoning), so that one text cannot show all answers as the model gives them",
            "set data.loss_on=last, or model.chat_template=FILE, a template that keeps answers as they are",
        )
    return len(begin), end


def _end_of_turn(text: str, begin: int, tokenizer: Tokenizer, row_id: str) -> int:
    """The end of the special token that ends a turn; white space after it is not the model's."""
    end = len(text.rstrip())
    special = [token for token in tokenizer.all_special_tokens if text.endswith(token, begin, end)]
    for token in tokenizer.added_tokens_decoder.values():
        special += [token.content] if token.special and text.endswith(token.content, begin, end) else []
    if not special:
        raise UserError(
            f"{row_id}: the chat template does not end the assistant's turn with a special token, so the model could "
            "not learn where to stop",
            "set model.chat_template=FILE, a template that does, or model.tokenizer to one that has it",
        )
    return end


def render(messages: Sequence[Message], tokenizer: Tokenizer, row_id: str, *, answer: bool = False) -> str:
    """The template's text of a conversation, with the generation prompt if `answer`.

    Raises:
        UserError: the template refuses the conversation.
    """
    import jinja2

    try:
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=answer, tokenize=False)
    except jinja2.TemplateError as error:
        raise refused(messages, row_id, error) from error


def refused(messages: Sequence[Message], row_id: str, error: Exception) -> UserError:
    """What is said when a chat template refuses a conversation."""
    roles = ", ".join(message["role"] for message in messages)
    return UserError(
        f"{row_id}: the chat template refuses a conversation of the roles {roles}: {error}",
        "change the conversation (or data.system_prompt), or set model.chat_template=FILE",
    )


def _marked(messages: Sequence[Message], tokenizer: Tokenizer, row_id: str) -> tuple[str, list[Span]]:
    """The rendering and the runs of it between the template's generation marks."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    if not messages:
        return "", []
    try:
        # Its own annotation speaks of a text alone.
        rendered: Any = render_jinja_template(
            conversations=[list(messages)],
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except jinja2.TemplateError as error:
        raise refused(messages, row_id, error) from error
    texts, marks = rendered
    return texts[0], [(begin, end) for begin, end in marks[0] if end > begin]
