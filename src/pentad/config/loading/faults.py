"""Values of the wrong type or out of range, in words: what was expected, what was given, where, and what to write."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pentad.config.loading.keys import Key, key_of_eval, known_keys, owner
from pentad.config.loading.yaml_io import read_word, write_value
from pentad.config.schema.evaluation import EvalSettings
from pentad.errors import UserError

_WORDS = {bool: "true/false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}

_TRUTH = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def describe(error: ValidationError, place: Callable[[Sequence[Any]], str]) -> Iterator[UserError]:
    """One problem for each fault that pydantic found.

    Args:
        error: from validating `RunSettings`.
        place: says where the value of a key path was given.
    """
    for fault in error.errors(include_url=False, include_context=False):
        path = _without_tag(fault["loc"])
        name = _dotted(path)
        if path[:2] == ("data", "eval") and len(path) > 3:
            yield _in_evaluation(path, fault, place(path))
            continue
        if fault["type"] == "missing":
            yield _missing(name)
            continue
        key = owner(tuple(map(str, path)))
        if key is None:
            yield _section(name, fault["input"], place(path))
            continue
        if fault["type"] == "extra_forbidden" and key.algorithms:
            yield _of_another_algorithm(key, fault["loc"][1], place(path))
            continue
        if key.algorithms:
            key = key.of(str(fault["loc"][1]))
        given = fault["input"]
        inside = key.free and len(path) > len(key.name.split("."))
        expected = "text or a mapping" if inside else key.expected
        cause = f"{name} ({place(path)}): expected {expected}, got {_shown(given)}"
        yield UserError(cause, _fix(key, name, given, item=list in key.types and len(path) > len(key.name.split("."))))


def _without_tag(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """A path without the name of the algorithm, by which pydantic says whose settings were looked at."""
    return (path[0], *path[2:]) if len(path) > 1 and path[0] == "algorithm" else path


def _in_evaluation(path: tuple[Any, ...], fault: ErrorDetails, place: str) -> UserError:
    """A fault of `data.eval.NAME.FIELD`."""
    name, field = _dotted(path), str(path[3])
    key = key_of_eval(str(path[2]), field)
    if key is None:
        known = list(EvalSettings.model_fields)
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]}?" if near else f"an evaluation has {', '.join(known)}"
        return UserError(f"{name} ({place}): unknown key", fix)
    if fault["type"] == "missing":
        return UserError(f"{name} is required ({key.expected}: {key.description})", f"add {name}, or give {name}=VALUE")
    given = fault["input"]
    return UserError(
        f"{name} ({place}): expected {key.expected}, got {_shown(given)}", _fix(key, name, given, item=False)
    )


def _of_another_algorithm(key: Key, algorithm: str | int, place: str) -> UserError:
    return UserError(
        f"{key.name} ({place}) is set, but algorithm {algorithm} does not read it",
        f"remove {key.name}, or set algorithm.name to {' or '.join(key.algorithms)}",
    )


def _missing(name: str) -> UserError:
    key = known_keys()[name]
    return UserError(f"{name} is required ({key.expected}: {key.description})", f"add {name}, or give {name}=VALUE")


def _section(name: str, given: Any, place: str) -> UserError:
    inside = [key.removeprefix(name + ".") for key in known_keys() if key.startswith(name + ".")]
    keys = ", ".join(inside[:6]) + (", ..." if len(inside) > 6 else "")
    fix = f"remove the line {name}:" if given is None else f"give the keys of {name} one by one"
    return UserError(f"{name} ({place}): expected a section (keys {keys}), got {_shown(given)}", fix)


def _fix(key: Key, name: str, given: Any, *, item: bool) -> str:
    """What to write instead of `given`, which is the value of `key` or, with `item`, one item of its list."""
    if key.choices:
        nearest = _nearest_choice(key.choices, given)
        return f"write [{nearest}]" if list in key.types and not item else f"write {nearest}"
    if isinstance(given, str):
        meant = read_word(given.strip())
        if (type(meant) in key.types and type(meant) is not str) or (float in key.types and type(meant) is int):
            return f"write {given.strip()} without quotes"
        if bool in key.types:
            return "write " + _TRUTH.get(given.lower(), "true or false")
    if (str in key.types or key.free) and isinstance(given, bool | int | float):
        return f'write "{write_value(given)}" in quotes (on the command line: {name}=\'"{write_value(given)}"\')'
    if list in key.types and isinstance(given, str):
        return f"write [{given}]"
    if isinstance(given, float) and int in key.types and given.is_integer():
        return f"write {int(given)}"
    if key.required:
        return f"give {key.expected}"
    return f"give {key.expected}; the default is {write_value(_plain(key.default))}"


def _nearest_choice(choices: Sequence[str], given: Any) -> str:
    near = difflib.get_close_matches(str(given).lower(), choices, n=1, cutoff=0.5)
    return near[0] if near else " or ".join(choices)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = write_value(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({_WORDS.get(type(value), type(value).__name__)})"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _dotted(path: Sequence[Any]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
