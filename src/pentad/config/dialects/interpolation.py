"""`${a.b}` and `${oc.env:NAME}` in values of other systems' files.

Invariant: what cannot be resolved is kept as it is written, and named in `Entry.unresolved`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pentad.config.dialects.entries import Entry

_REFERENCE = re.compile(r"\$\{([^${}]+)\}")
_DEEPEST = 20


def resolve(entries: Sequence[Entry], variables: Mapping[str, str]) -> list[Entry]:
    """The entries with references put in.

    Args:
        entries: all of a file.
        variables: environment variables that are known, for `${oc.env:NAME}`.
    """
    known = {entry.key: entry for entry in entries}
    return [_resolved(entry, known, variables) for entry in entries]


def _resolved(entry: Entry, known: Mapping[str, Entry], variables: Mapping[str, str]) -> Entry:
    missing: list[str] = []
    value = _value(entry.value, known, variables, missing, 0)
    if not missing:
        return replace(entry, value=value)
    return replace(entry, value=value, unresolved=(*entry.unresolved, *dict.fromkeys(missing)))


def _value(value: Any, known: Mapping[str, Entry], variables: Mapping[str, str], missing: list[str], depth: int) -> Any:
    if isinstance(value, list):
        return [_value(item, known, variables, missing, depth) for item in value]
    if isinstance(value, dict):
        return {name: _value(item, known, variables, missing, depth) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value.strip())
    if whole:
        return _reference(whole, known, variables, missing, depth)
    return _REFERENCE.sub(lambda match: str(_reference(match, known, variables, missing, depth)), value)


def _reference(
    match: re.Match[str], known: Mapping[str, Entry], variables: Mapping[str, str], missing: list[str], depth: int
) -> Any:
    name = match[1].strip()
    if name.startswith("oc.env:"):
        variable, comma, default = name.removeprefix("oc.env:").partition(",")
        if variable in variables:
            return variables[variable]
        if comma:
            return default.strip().strip("'\"")
        missing.append(match[0])
        return match[0]
    target = known.get(name)
    if target is None or depth >= _DEEPEST:
        section = {key.removeprefix(name + "."): entry for key, entry in known.items() if key.startswith(name + ".")}
        if section and depth < _DEEPEST:
            return {key: _value(entry.value, known, variables, missing, depth + 1) for key, entry in section.items()}
        missing.append(match[0])
        return match[0]
    missing += target.unresolved
    return _value(target.value, known, variables, missing, depth + 1)
