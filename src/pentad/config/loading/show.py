"""Settings as people read them: the effective configuration of a run, and the reference of every key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pentad.config.loading.interpolate import escape
from pentad.config.loading.keys import Key, known_keys
from pentad.config.loading.load import LoadedSettings
from pentad.config.loading.unread import unread_keys
from pentad.config.loading.yaml_io import write_value
from pentad.config.schema.algorithms import ALGORITHMS, CUSTOM
from pentad.config.schema.base import Settings
from pentad.config.schema.run import RunSettings


def effective_yaml(loaded: LoadedSettings) -> str:
    """The effective settings as YAML, each with a comment that says where it came from.

    What this run does not read is commented out, with the reason. The text loads again as the same settings.
    """
    unread = unread_keys(loaded.settings)
    lines: list[tuple[str, str]] = []
    sections: tuple[str, ...] = ()
    for name, key in known_keys().items():
        if not has(loaded.settings, name):  # a key of another algorithm
            continue
        *above, last = name.split(".")
        for depth, section in enumerate(above):
            if sections[: depth + 1] != tuple(above[: depth + 1]):
                lines.append(("  " * depth + section + ":", ""))
        sections = tuple(above)
        indent, value = "  " * len(above), escape(plain(value_of(loaded.settings, name)))
        if name in unread:
            lines.append((f"{indent}# {last}: {write_value(value)}", f"not read: {unread[name][0]}"))
        elif key.free and value:
            lines.append((f"{indent}{last}:", ""))
            lines += [
                (f"{indent}  {write_value(inner)}: {write_value(item)}", loaded.origins[f"{name}.{inner}"])
                for inner, item in value.items()
            ]
        else:
            lines.append((f"{indent}{last}: {write_value(value)}", loaded.origins[name]))
    lines = [line for number, line in enumerate(lines) if not _is_hollow(lines, number)]
    width = min(60, max(len(text) for text, _ in lines))
    return "\n".join(f"{text:<{width}}  # {comment}" if comment else text for text, comment in lines) + "\n"


def reference_text() -> str:
    """Every key with its type, default and description, for the terminal."""
    lines = []
    for key in known_keys().values():
        lines.append(f"{key.name}  ({_expected(key)}; {_default(key)})")
        lines.append(f"    {key.description}")
    return "\n".join(lines) + "\n"


def reference_markdown() -> str:
    """The reference page, docs/configuration.md."""
    parts = [_PREFACE]
    for section, keys in _by_section().items():
        parts.append(f"## {section}\n\n| key | value | default | meaning |\n|---|---|---|---|\n")
        for key in keys:
            cells = (f"`{key.name}`", _expected(key), _default(key, code="`"), key.description + _read_by(key))
            parts.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |\n")
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def has(settings: RunSettings, name: str) -> bool:
    """Whether these settings have a key: those of other algorithms than the chosen one are not there."""
    section, _, field = name.partition(".")
    return section != "algorithm" or field.partition(".")[0] in type(settings.algorithm).model_fields


def value_of(settings: RunSettings, name: str) -> Any:
    """The value of a setting by its dotted name."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def plain(value: Any) -> Any:
    """The value as YAML has it: no tuples, no paths, no settings."""
    if isinstance(value, Settings):
        return plain(value.model_dump())
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _is_hollow(lines: list[tuple[str, str]], number: int) -> bool:
    """Whether a section header has nothing but comments, or such headers, below it; it would read as null."""
    text = lines[number][0]
    if not text.endswith(":") or text.lstrip().startswith("#"):
        return False
    depth = len(text) - len(text.lstrip())
    for place, (below, _) in enumerate(lines[number + 1 :], number + 1):
        if len(below) - len(below.lstrip()) <= depth:
            return True
        if not below.lstrip().startswith("#") and not _is_hollow(lines, place):
            return False
    return True


def _by_section() -> dict[str, list[Key]]:
    sections: dict[str, list[Key]] = {}
    for key in known_keys().values():
        sections.setdefault(key.name.partition(".")[0], []).append(key)
    return sections


def _default(key: Key, code: str = "") -> str:
    if key.required:
        return "required"
    value = f"{code}{_written(key)}{code}" + _of_others(key, _written, code)
    return value if code else f"default {value}"


def _expected(key: Key) -> str:
    return key.expected + _of_others(key, lambda other: other.expected)


def _read_by(key: Key) -> str:
    """The algorithms that have a key: those, or the others, whichever are fewer."""
    if not key.algorithms:
        return ""
    others = [name for name in (*ALGORITHMS, CUSTOM) if name not in key.algorithms]
    few = len(key.algorithms) <= len(others)
    return f" ({', '.join(key.algorithms)})" if few else f" (all but {', '.join(others)})"


def _written(key: Key) -> str:
    return write_value(plain(key.default))


def _of_others(key: Key, text: Callable[[Key], str], code: str = "") -> str:
    """What differs for some algorithms, and for which."""
    by_value: dict[str, list[str]] = {}
    for algorithm, other in key.variants:
        if text(other) != text(key):
            by_value.setdefault(text(other), []).append(algorithm)
    return "".join(f"; {', '.join(names)}: {code}{value}{code}" for value, names in by_value.items())


_PREFACE = """\
# Configuration

<!-- Written by `make docs`; a test compares it with the schema. -->

A run is described by one YAML file. `pentad config FILE [key=value ...]` checks it and prints every setting that
would be used, with the place that it came from; `pentad train FILE [key=value ...]` does the same check first.

- **Overrides** on the command line, such as `trainer.optimizer.lr=1e-5` or `data.eval={test: data/test.jsonl}`, go
  over the file. Values are YAML: numbers, `true`, `null`, lists, mappings. A mapping given for a section is merged
  into it.
- **`${section.key}`** stands for the value of another key of the file; `\\${` is a plain `${`.
- **Words** are read as YAML 1.2 has them: `1e-6` is a number, `no` and `on` are text.
- **Unknown keys**, keys given twice, values of the wrong type, and settings that the run would not read are errors.
  All of them are reported together.

"""
