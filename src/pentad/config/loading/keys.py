"""The list of every setting, read off the schema: the one source for messages, suggestions and the reference page."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pentad.config.schema.algorithms import ALGORITHMS, CUSTOM, CustomSettings
from pentad.config.schema.evaluation import EvalSettings
from pentad.config.schema.run import RunSettings


@dataclass(frozen=True)
class Key:
    """One setting.

    Attributes:
        name: dotted name, such as `trainer.optimizer.lr`.
        expected: what values are accepted, in words.
        default: the default value; None when `required`.
        description: one line.
        required: whether a configuration must give it.
        free: whether the value is a mapping with keys of the user's choice.
        choices: the accepted words, if the setting (or each of its items) is one of a few.
        types: the accepted Python types, without None.
        algorithms: of a key of `algorithm`, the algorithms that have it.
        variants: algorithms for which another default or other values hold, and the key as they have it.
    """

    name: str
    expected: str
    default: Any
    description: str
    required: bool
    free: bool
    choices: tuple[str, ...]
    types: tuple[type, ...]
    algorithms: tuple[str, ...] = ()
    variants: tuple[tuple[str, "Key"], ...] = ()

    def of(self, algorithm: str) -> "Key":
        """The key as an algorithm has it."""
        return dict(self.variants).get(algorithm, self)


@cache
def known_keys() -> Mapping[str, Key]:
    """Every setting by its dotted name, in the order of the schema."""
    return {key.name: key for key in _walk(RunSettings, "")}


@cache
def section_names() -> frozenset[str]:
    """Dotted names of the groups, such as `trainer` and `trainer.optimizer`."""
    names = set()
    for name in known_keys():
        parts = name.split(".")
        names.update(".".join(parts[:end]) for end in range(1, len(parts)))
    return frozenset(names)


def owner(path: tuple[str, ...]) -> Key | None:
    """The setting that a path belongs to: itself, or the free mapping or list that it lies in."""
    for end in range(len(path), 0, -1):
        if key := known_keys().get(".".join(path[:end])):
            return key
    return None


def key_of_eval(name: str, field: str) -> Key | None:
    """One setting of an evaluation, `data.eval.NAME.FIELD`; None where there is no such field."""
    found = EvalSettings.model_fields.get(field)
    return None if found is None else _key(f"data.eval.{name}.{field}", found)


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if name == "algorithm":
            yield from _walk_algorithms()
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _walk(annotation, f"{prefix}{name}.")
        else:
            yield _key(prefix + name, field)


def _walk_algorithms() -> Iterator[Key]:
    """The keys of all algorithms, each once; the name first."""
    classes = {**ALGORITHMS, CUSTOM: CustomSettings}
    found: dict[str, Key] = {}
    for algorithm, settings in classes.items():
        for mine in _walk(settings, "algorithm."):
            name = mine.name.removeprefix("algorithm.")
            key = found.get(name, mine)
            differs = (mine.default, mine.expected) != (key.default, key.expected)
            variants = (*key.variants, (algorithm, mine)) if differs else key.variants
            found[name] = replace(key, algorithms=(*key.algorithms, algorithm), variants=variants)
    names = ", ".join(ALGORITHMS)
    yield replace(
        found.pop("name"),
        expected=f"one of {names}, or {CUSTOM}",
        default=next(iter(ALGORITHMS)),
        description="the algorithm; each reads its own keys",
        choices=tuple(ALGORITHMS),
        algorithms=(),
        variants=(),
    )
    yield from found.values()


def _key(name: str, field: FieldInfo) -> Key:
    members = _members(field.annotation)
    inner = [item for member in members for item in (get_args(member) if get_origin(member) is list else (member,))]
    choices = tuple(word for item in inner if get_origin(item) is Literal for word in get_args(item))
    return Key(
        name=name,
        expected=_in_words(field.annotation, field.metadata),
        default=None if field.is_required() else field.get_default(call_default_factory=True),
        description=field.description or "",
        required=field.is_required(),
        free=any(get_origin(member) is dict for member in members),
        choices=choices,
        types=tuple(get_origin(member) or member for member in members if member is not type(None)),
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


_MAPPED = {str: "text", EvalSettings: "sources or mappings"}
_PLAIN = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
}


def _in_words(annotation: Any, metadata: list[Any]) -> str:
    bounds = " and ".join(text for item in metadata if (text := _bound(item)))
    return " or ".join(
        _one_in_words(member) + (f" {bounds}" if bounds and member is not type(None) else "")
        for member in _members(annotation)
    )


def _one_in_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is list:
        return f"a list ({_one_in_words(arguments[0])})"
    if origin is tuple:
        return f"a list of {len(arguments)} ({_annotated_in_words(arguments[0])} each)"
    if origin is dict:
        return "a mapping of names to " + _MAPPED.get(arguments[1], "values")
    return _PLAIN.get(annotation, str(annotation))


def _annotated_in_words(annotation: Any) -> str:
    metadata = [item for extra in getattr(annotation, "__metadata__", ()) for item in getattr(extra, "metadata", ())]
    return _in_words(getattr(annotation, "__origin__", annotation), metadata)


def _bound(item: Any) -> str:
    match item:
        case annotated_types.Ge(bound):
            return f">= {bound}"
        case annotated_types.Gt(bound):
            return f"> {bound}"
        case annotated_types.Le(bound):
            return f"<= {bound}"
        case annotated_types.Lt(bound):
            return f"< {bound}"
    pattern = getattr(item, "pattern", None)
    return f"matching {pattern}" if pattern else ""
