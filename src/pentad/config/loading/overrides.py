"""Command-line overrides: `section.key=value`, the value in YAML. Each key is given at most once."""

from collections.abc import Sequence
from typing import Any

import yaml

from pentad.config.loading.keys import section_names
from pentad.config.loading.yaml_io import KeyPath, read_value
from pentad.errors import UserError

COMMAND_LINE = "command line"
_EVALUATIONS = ("data", "eval")


def apply_overrides(values: dict[str, Any], origins: dict[KeyPath, str], overrides: Sequence[str]) -> list[UserError]:
    """Put overrides into `values` and their origin into `origins`, in place; return what is wrong with them.

    A mapping given for a section is merged into it; anything else replaces what was there.
    """
    problems: list[UserError] = []
    seen: set[KeyPath] = set()
    for override in overrides:
        try:
            name, value = _split(override)
            _put(values, origins, seen, tuple(name.split(".")), value)
        except UserError as problem:
            problems.append(problem)
    return problems


def _split(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override {override!r} has no '='", f"write {name}=VALUE")
    bare = name.lstrip("+~")
    if bare != name:
        raise UserError(f"override {override!r} starts with {name[0]!r}", f"write {bare}={text}; no prefix is needed")
    if not name or any(not part or part != part.strip() for part in name.split(".")):
        raise UserError(f"override {override!r}: {name!r} is not a key", "write section.key=VALUE, without spaces")
    if not text.strip():
        raise UserError(f"override {override!r} has no value", f"write {name}=null, or {name}='\"\"' for empty text")
    try:
        return name, read_value(text)
    except (yaml.YAMLError, ValueError) as error:
        what = getattr(error, "problem", None) or str(error)
        raise UserError(
            f"override {override!r}: the value is not valid YAML: {what}", f"put text in quotes: {name}='\"...\"'"
        ) from error


def _put(values: dict[str, Any], origins: dict[KeyPath, str], seen: set[KeyPath], path: KeyPath, value: Any) -> None:
    if isinstance(value, dict) and ".".join(path) in section_names():
        for key, inner in value.items():
            _put(values, origins, seen, (*path, key), inner)
        return
    for other in seen:
        if other == path:
            raise UserError(f"{'.'.join(path)} is given twice on the command line", "keep one of the two")
        if other[: len(path)] == path or path[: len(other)] == other:
            both = " and ".join(sorted((".".join(path), ".".join(other))))
            raise UserError(f"{both} are both given on the command line", "give the whole, or its parts")
    seen.add(path)
    target = values
    for depth, part in enumerate(path[:-1], start=1):
        inner = target.get(part)
        if isinstance(inner, str) and path[:2] == _EVALUATIONS and depth == 3:
            given: dict[str, Any] = {"source": inner}  # the short form of an evaluation
            inner = target[part] = given
        if inner is None:
            inner = target[part] = {}
        elif not isinstance(inner, dict):
            where = ".".join(path[:depth])
            raise UserError(
                f"{'.'.join(path)} (command line): {where} is {inner!r}, which has no keys",
                f"set {where} itself, or correct it in the file",
            )
        origins.setdefault(path[:depth], COMMAND_LINE)
        target = inner
    for old in [key for key in origins if key[: len(path)] == path]:
        del origins[old]
    target[path[-1]] = value
    _mark(origins, path, value)


def _mark(origins: dict[KeyPath, str], path: KeyPath, value: Any) -> None:
    origins[path] = COMMAND_LINE
    if isinstance(value, dict):
        for key, inner in value.items():
            _mark(origins, (*path, key), inner)
