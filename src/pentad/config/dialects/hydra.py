"""The words of a launch command as settings: `key=value`, `+key=value`, `++key=value`, `~key`, `--flag value`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from pentad.config.dialects.entries import Entry
from pentad.config.dialects.shell import Word
from pentad.config.loading.yaml_io import read_value

_OVERRIDE = re.compile(r"(\+{0,2})([A-Za-z_][\w.@/-]*)=(.*)", re.DOTALL)
_LAUNCHERS = ("python", "python3", "torchrun", "accelerate", "uv", "bash", "ray", "srun", "trl", "deepspeed")


@dataclass
class Command:
    """A launch command.

    Attributes:
        entries: its settings.
        removed: keys that `~key` takes out.
        modules: what `python -m` runs, or the script.
        files: configuration files that it names (`--config`).
        flags: `--name value` settings, with underscores.
        others: words that are none of these.
    """

    entries: list[Entry] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    files: list[Word] = field(default_factory=list)
    flags: list[Entry] = field(default_factory=list)
    others: list[Word] = field(default_factory=list)


def read_command(words: Sequence[Word], file: str) -> Command:
    """Sort the words of a command."""
    command, at = Command(), 0
    while at < len(words):
        word = words[at]
        following = words[at + 1] if at + 1 < len(words) else None
        place = f"{file}:{word.line}"
        if match := _OVERRIDE.fullmatch(word.text):
            command.entries.append(_entry(match[2], match[3], place, word.unresolved))
        elif word.text.startswith("~"):
            command.removed.append(word.text[1:].partition("=")[0])
        elif word.text == "-m" and following is not None:
            command.modules.append(following.text)
            at += 1
        elif match := re.fullmatch(r"--([\w-]+)=(.*)", word.text, re.DOTALL):
            _flag(command, match[1], Word(match[2], word.line, word.unresolved), place)
        elif word.text.startswith("--") and following is not None and not following.text.startswith("-"):
            if _OVERRIDE.fullmatch(following.text):
                _flag(command, word.text[2:], Word("true", word.line), place)
            else:
                values = [following]
                while at + 2 < len(words) and _is_plain(words[at + 2].text) and not _is_program(words[at + 2].text):
                    at += 1
                    values.append(words[at + 1])
                _flag(command, word.text[2:], _joined(values), place)
                at += 1
        elif word.text.startswith("--"):
            _flag(command, word.text[2:], Word("true", word.line), place)
        elif word.text.endswith(".py"):
            command.modules.append(word.text.removesuffix(".py").replace("/", "."))
        elif word.text.endswith((".yaml", ".yml")):
            command.files.append(word)
        elif word.text not in _LAUNCHERS and word.text not in ("launch", "run", "submit", "set", "-x", "-u", "exec"):
            command.others.append(word)
        at += 1
    return command


def _is_plain(text: str) -> bool:
    return not text.startswith("-") and _OVERRIDE.fullmatch(text) is None


def _is_program(text: str) -> bool:
    return text in _LAUNCHERS or text.endswith((".py", ".yaml", ".yml")) or text.startswith("$")


def _joined(words: Sequence[Word]) -> Word:
    if len(words) == 1:
        return words[0]
    return Word("[" + ", ".join(word.text for word in words) + "]", words[0].line)


def _flag(command: Command, name: str, value: Word, place: str) -> None:
    if name in ("config", "config-file", "config_file") and value.text != "true":
        command.files.append(value)
    else:
        command.flags.append(_entry(name.replace("-", "_"), value.text, place, value.unresolved))


def _entry(key: str, text: str, place: str, unresolved: tuple[str, ...]) -> Entry:
    return Entry(key, text if unresolved else read_word(text), place, unresolved)


def read_word(text: str) -> Any:
    """The value of a word of a command, by YAML's rules; text that is not YAML stays text."""
    if not text.strip():
        return None
    if text.strip() in ("None", "null"):
        return None
    try:
        return _plain(read_value(text))
    except (yaml.YAMLError, ValueError):
        return text


def _plain(value: Any) -> Any:
    return None if value == "None" else value
