"""Which column of a source is taken for what.

Invariant: a column is taken by its setting, or by a name that has one usual meaning; where two columns could be meant,
the source is refused with the setting to give. What was taken is said in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pentad.config.schema.data import DataSettings
from pentad.errors import UserError

PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input")
CONVERSATIONS = ("messages", "conversations", "conversation")
RESPONSES = ("response", "completion", "output", "answer", "solution")
# The first of these that is there; and of others, the only one.
TRUTHS_IN_ORDER = ("ground_truth", "answer")
TRUTHS = (
    "solution",
    "solutions",
    "expected_answer",
    "final_answer",
    "reference_answer",
    "target",
    "gold",
    "label",
    "output",
    "response",
    "completion",
)
# verl's and SkyRL's columns with {ground_truth: ...}.
TRUTH_SPECS = ("reward_model", "reward_spec")
PAIRS = ("chosen", "rejected")


@dataclass(frozen=True)
class Columns:
    """The columns of one source; None for what it does not have.

    Attributes:
        prompt: text or messages that are to be answered.
        conversation: whole conversations; instead of `prompt`.
        context: text that is added to the prompt (`input` beside `instruction`).
        system: text of a system message, beside `instruction` or a conversation.
        history: earlier turns as pairs of texts, beside `instruction`.
        response: the wanted response.
        truth: what rewards compare with.
        spec: whether `reward_model` or `reward_spec` goes before `truth`, row by row.
    """

    prompt: str | None = None
    conversation: str | None = None
    context: str | None = None
    system: str | None = None
    history: str | None = None
    response: str | None = None
    truth: str | None = None
    spec: str | None = None

    def sentence(self) -> str:
        """What is taken for what, in words."""
        parts = []
        if self.conversation:
            parts.append(f"conversations from {self.conversation!r}")
        elif self.prompt:
            beside = [name for name in (self.system, self.history, self.context) if name]
            parts.append(f"prompts from {' with '.join(map(repr, [self.prompt, *beside]))}")
        if self.conversation and self.system:
            parts.append(f"system messages from {self.system!r}")
        if self.response:
            parts.append(f"responses from {self.response!r}")
        truths = [f"{self.spec}.ground_truth"] if self.spec else [self.truth] if self.truth else []
        parts += [f"ground truth from {name!r}" for name in truths]
        return ", ".join(parts)


def find(record: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of an entry of one (`extra_info.answer`); None where it is not there."""
    if path in record:
        return record[path]
    name, dot, inner = path.partition(".")
    value = record.get(name)
    return find(value, inner) if dot and isinstance(value, Mapping) else None


def choose_columns(
    records: Sequence[tuple[str, Mapping[str, Any]]], settings: DataSettings, setting: str, with_response: bool
) -> Columns:
    """Decide which columns are taken.

    Args:
        records: places and rows of the source, at least one.
        setting: names the setting of the source, for messages.
        with_response: wanted responses are needed (supervised training).

    Raises:
        UserError: a named column is not there, none has a known name, or several have.
    """
    sample: dict[str, Any] = {}
    for _, record in records:
        for name, value in record.items():
            if sample.get(name) is None:
                sample[name] = value
    chooser = _Chooser(sample, records[0][0], settings, setting)
    return chooser.for_examples() if with_response else chooser.for_prompts()


class _Chooser:
    """Chooses the columns of one source.

    Args:
        sample: every column with its first value that is not null.
        row_id: the place of the first row.
    """

    def __init__(self, sample: Mapping[str, Any], row_id: str, settings: DataSettings, setting: str) -> None:
        self._names, self._row_id, self._first = list(sample), row_id, sample
        self._settings, self._setting = settings, setting

    def for_prompts(self) -> Columns:
        """Prompts that are to be answered, and what answers are compared with."""
        base = self._named() or self._prompt_or_conversation()
        if (wanted := self._settings.ground_truth_column) is not None:
            self._check(wanted, "data.ground_truth_column")
            return replace(base, truth=wanted)
        spec = next((name for name in TRUTH_SPECS if self._first.get(name) is not None), None)
        taken = (base.prompt, base.conversation, base.context)
        return replace(base, truth=self._truth(taken, ambiguous=spec is None), spec=spec)

    def for_examples(self) -> Columns:
        """Prompts with their responses, or whole conversations."""
        base = self._named()
        if base is not None and base.conversation:
            return base
        if base is not None:
            return replace(base, response=self._response(base.prompt))
        prompts, conversations = self._prompts(), [name for name in CONVERSATIONS if name in self._names]
        if self._settings.response_column is not None:
            return replace(self._prompt_or_conversation(), response=self._response(None))
        responses = self._responses(prompts[0] if len(prompts) == 1 else None)
        if conversations and not (prompts and responses):
            if len(conversations) > 1:
                raise self._ambiguous("conversations", conversations, f"set data.messages_column={conversations[0]}")
            return self._conversation(conversations[0])
        if conversations and (prompts, responses) != (["prompt"], ["response"]):
            raise self._ambiguous(
                "what to train on",
                [prompts[0], *conversations],
                f"set data.messages_column={conversations[0]}, or data.prompt_column={prompts[0]}",
            )
        base = self._prompt_or_conversation()
        return replace(base, response=self._response(base.prompt))

    def _named(self) -> Columns | None:
        """The columns that the settings name."""
        prompt, conversation = self._settings.prompt_column, self._settings.messages_column
        if prompt is not None and conversation is not None:
            raise UserError(
                f"data.prompt_column={prompt} and data.messages_column={conversation} are both set",
                "keep data.messages_column for whole conversations, data.prompt_column for what is to be answered",
            )
        if conversation is not None:
            self._check(conversation, "data.messages_column")
            return self._conversation(conversation)
        if prompt is None:
            return None
        self._check(prompt, "data.prompt_column")
        return self._prompt(prompt)

    def _prompt_or_conversation(self) -> Columns:
        prompts, conversations = self._prompts(), [name for name in CONVERSATIONS if name in self._names]
        if "prompt" in prompts:
            return Columns(prompt="prompt")
        if len(prompts) == 1 and not conversations:
            return self._prompt(prompts[0])
        if len(conversations) == 1 and not prompts:
            return self._conversation(conversations[0])
        if not prompts and not conversations:
            raise self._none_found()
        columns = [*prompts, *conversations]
        ways = [
            f"data.{'messages' if name in conversations else 'prompt'}_column={name}"
            for name in (prompts[:1] + conversations[:1] if conversations else prompts)
        ]
        raise self._ambiguous("the prompts", columns, "set " + " or ".join(ways))

    def _prompts(self) -> list[str]:
        found = [name for name in PROMPTS if name in self._names]
        return ["prompt"] if "prompt" in found else [n for n in found if n != "input" or "instruction" not in found]

    def _prompt(self, name: str) -> Columns:
        """A prompt column, with the columns that belong to it: alpaca's `input`, `system` and `history`."""
        if name not in ("instruction", "query"):
            return Columns(prompt=name)
        context = "input" if name == "instruction" and "input" in self._names else None
        return Columns(
            prompt=name, context=context, system=self._beside("system", str), history=self._beside("history", list)
        )

    def _conversation(self, name: str) -> Columns:
        return Columns(conversation=name, system=self._beside("system", str))

    def _beside(self, name: str, kind: type) -> str | None:
        """A column that belongs to another, if it is there and of the right type."""
        return name if name in self._names and isinstance(self._first.get(name), kind | None) else None

    def _responses(self, prompt: str | None) -> list[str]:
        if "response" in self._names:
            return ["response"]
        return [name for name in RESPONSES if name in self._names and name != prompt]

    def _response(self, prompt: str | None) -> str:
        wanted = self._settings.response_column
        if wanted is not None:
            self._check(wanted, "data.response_column")
            return wanted
        found = self._responses(prompt)
        if len(found) > 1:
            raise self._ambiguous("the responses", found, f"set data.response_column={found[-1]}")
        if found:
            return found[0]
        if set(PAIRS) <= set(self._names):
            raise UserError(
                f"{self._setting}: the columns chosen and rejected are pairs of preferences, and none holds responses",
                "set data.response_column=chosen to learn the chosen ones, or algorithm.name to one that takes pairs",
            )
        inner = [f"{n}.{key}" for n in self._names for key in RESPONSES if find(self._first, f"{n}.{key}") is not None]
        raise UserError(
            f"{self._row_id}: there is no column 'response', nor another that usually holds responses "
            f"({', '.join(RESPONSES[1:])}); columns: {', '.join(self._names)}",
            f"set data.response_column={inner[0]}" if inner else "set data.response_column to one of those columns",
        )

    def _truth(self, taken: tuple[str | None, ...], *, ambiguous: bool) -> str | None:
        free = [name for name in self._names if name not in taken]
        for name in TRUTHS_IN_ORDER:
            if name in free:
                return name
        found = [name for name in TRUTHS if name in free]
        if len(found) > 1 and ambiguous:
            raise self._ambiguous("the ground truth", found, f"set data.ground_truth_column={found[0]}")
        return found[0] if len(found) == 1 else None

    def _check(self, path: str, key: str) -> None:
        if path in self._names or find(self._first, path) is not None:
            return
        nearest = difflib.get_close_matches(path, self._names, 1)
        raise UserError(
            f"{self._row_id}: there is no column {path!r}; columns: {', '.join(self._names) or 'none'}",
            f"set {key}={nearest[0]}" if nearest else f"set {key} to one of those columns, or remove it",
        )

    def _none_found(self) -> UserError:
        present = ", ".join(self._names) or "none"
        if set(PAIRS) <= set(self._names):
            return UserError(
                f"{self._row_id}: there are pairs (chosen, rejected), but no column 'prompt'; columns: {present}",
                "write the prompt that both answer into a column 'prompt', or name it in data.prompt_column",
            )
        usual = ", ".join((*PROMPTS[1:], *CONVERSATIONS))
        nearest = difflib.get_close_matches("prompt", self._names, 1) or ["text"] * ("text" in self._names)
        return UserError(
            f"{self._row_id}: there is no column 'prompt', nor another that usually holds prompts ({usual}); "
            f"columns: {present}",
            f"set data.prompt_column={nearest[0]}" if nearest else "set data.prompt_column to one of those columns",
        )

    def _ambiguous(self, what: str, names: list[str], fix: str) -> UserError:
        return UserError(
            f"{self._setting}: {' and '.join(map(repr, names))} could each hold {what}; columns: "
            f"{', '.join(self._names)}",
            fix,
        )
