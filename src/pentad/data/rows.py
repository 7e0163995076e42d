"""What a dataset is once it is read: rows with a prompt, and where they came from.

Invariant: a `PromptRow` is complete and of checked types; whoever holds one need not look at it twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from pentad.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
# ShareGPT's names of roles, in messages of {from, value}.
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}

Message = dict[str, str]


@dataclass(frozen=True)
class PromptRow:
    """One prompt to be answered, and all that its reward needs.

    Args:
        id: says where the row is, e.g. `train.jsonl:13` (line) or `train.parquet[12]` (row).
        prompt: text, or the messages of a conversation that ends with the user.
        data_source: names the kind of problem (`openai/gsm8k`); chooses the reward when `reward.name` is auto.
        ground_truth: what the reward compares with; None where the data has none.
        extra: all columns of the row as the data has them; a reward may ask for them by name.
        response: the wanted response; only for supervised training.
        conversation: all messages of a conversation whose assistant turns are trained on; only for supervised training.
        first: index of the first message of `conversation` that may be trained on.
        source: index of the source among those of `data.train`.
    """

    id: str
    prompt: str | tuple[Message, ...]
    data_source: str = ""
    ground_truth: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    response: str | None = None
    conversation: tuple[Message, ...] | None = None
    first: int = 0
    source: int = 0


@dataclass(frozen=True)
class Rows(Sequence[PromptRow]):
    """The rows of one source, at least one.

    Args:
        source: as the settings name it.
        held_out: how many rows of the source were left out, because their questions are evaluated on.
        said: how the rows were read: which columns were taken for what, and what was left out.
    """

    source: str
    rows: tuple[PromptRow, ...]
    held_out: int = 0
    said: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PromptRow]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> PromptRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PromptRow, ...]: ...
    def __getitem__(self, index: int | slice) -> PromptRow | tuple[PromptRow, ...]:
        return self.rows[index]


def parse_prompt(value: Any, row_id: str, column: str) -> str | tuple[Message, ...]:
    """A prompt of checked type: text that is not blank, or messages of known roles that end with the user's turn.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str):
        if not value.strip():
            raise UserError(f"{row_id}: column {column!r} is empty", "give every row a prompt, or remove the row")
        check_text(value, f"{row_id}: column {column!r}")
        return value
    messages = parse_messages(value, row_id, column)
    if messages[-1]["role"] not in ("user", "tool"):
        raise UserError(
            f"{row_id}: the conversation ends with the role {messages[-1]['role']!r}; nobody is to be answered",
            "end every prompt with a user message; of whole conversations, set data.messages_column to the column, and "
            "the last answer is left out of the prompt",
        )
    return messages


def parse_messages(value: Any, row_id: str, column: str) -> tuple[Message, ...]:
    """Messages of checked types and known roles, as OpenAI writes them ({role, content}) or ShareGPT ({from, value}).

    Text that holds a JSON list is read as that list; CSV has no other way.

    Raises:
        UserError: it is something else.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{row_id}: column {column!r} is not JSON: {error}", "write a list of messages") from error
    if not isinstance(value, list | tuple):
        raise UserError(
            f"{row_id}: column {column!r} is {_kind(value)}, not a string or a list of {{role, content}}",
            f"set data.prompt_column to the column that holds the prompts, or rewrite {column!r}",
        )
    if not value:
        raise UserError(f"{row_id}: column {column!r} has no messages", "give every row a prompt, or remove the row")
    messages = tuple(_parse_message(message, f"{row_id}: message {i} of {column!r}") for i, message in enumerate(value))
    if any(message["role"] == "system" for message in messages[1:]):
        raise UserError(f"{row_id}: a system message that is not the first", "put the system message first")
    return messages


def check_text(text: str, where: str) -> None:
    """Refuse what no tokenizer takes: half of a surrogate pair, which JSON can write and Unicode does not have.

    Raises:
        UserError: there is one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} has half a surrogate pair, \\u{ord(text[error.start]):04x}, as character {error.start + 1}; "
            "that is not text",
            "fix or remove the row; what cut the text must not cut within a character",
        ) from None


def _parse_message(message: Any, where: str) -> Message:
    if isinstance(message, Mapping) and {"from", "value"} <= message.keys() and "role" not in message:
        role = message["from"]
        message = {"role": _SHAREGPT.get(role, role) if isinstance(role, str) else role, "content": message["value"]}
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        found = f"keys {', '.join(map(repr, message))}" if isinstance(message, Mapping) else _kind(message)
        raise UserError(f"{where} needs the keys 'role' and 'content'; found {found}", "rewrite the message")
    role, content = message["role"], _text_of(message["content"])
    if role not in ROLES:
        raise UserError(f"{where} has the role {role!r}", f"use one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{where} has content that is {_kind(content)}, not a string", "give it plain text")
    if not content.strip():
        raise UserError(f"{where} ({role}) is empty", "give it text, or remove the message")
    check_text(content, f"{where} ({role})")
    return {"role": role, "content": content}


def _text_of(content: Any) -> Any:
    """The text of content in OpenAI's parts, [{type: text, text}]; anything else as it is."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if whole else content


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
