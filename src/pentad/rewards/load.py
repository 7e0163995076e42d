"""Finding the function that `reward.name` names, and checking that it can be called.

Invariant: a reward that loads accepts responses and every key of `reward.options`; what is wrong with one that does
not is said before the run starts. A reward is given what its signature names, and nothing else.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pentad.config.schema.reward import WITH_OPTIONS
from pentad.errors import UserError
from pentad.rewards.builtin import BUILTIN, warm_up
from pentad.rewards.styles import PENTAD, SKYRL, Environment, Style, recognise
from pentad.rewards.types import RewardItem
from pentad.user_code import load_object

_WANTED = "def reward(prompt, response, ground_truth, **columns) -> float"
# Parameters of TRL's functions that its trainer alone can give.
_TRAINER_ONLY = ("trainer_state", "log_extra", "log_metric")


@dataclass(frozen=True)
class Reward:
    """A reward function, ready to be called.

    Args:
        function: takes what its style gives, columns of the row and options, by name; returns a number or a dict with
            `score`, or for a batch a list of these.
        options: keyword arguments of every call.
        accepts: names that it takes besides the options, or None for any.
        requires: columns that it takes and has no default for; a row must have them.
        style: how it is called.
        waits: it is asynchronous.
    """

    function: Callable[..., Any]
    options: Mapping[str, Any]
    accepts: frozenset[str] | None
    requires: frozenset[str]
    style: Style = PENTAD
    waits: bool = False

    def __call__(self, prompt: str, response: str, ground_truth: Any, columns: Mapping[str, Any]) -> Any:
        """Call it for one sample; see `call`."""
        return self.call([RewardItem(prompt, response, ground_truth, extra=columns)])

    def call(self, items: Sequence[RewardItem]) -> Any:
        """Call it with what it names, or with everything if it takes `**kwargs`. Options go before columns.

        Args:
            items: one sample; of a style for batches, any number.
        """
        columns = [item.columns for item in items]
        if self.style.batch:
            names = dict.fromkeys(name for each in columns for name in each)
            known: dict[str, Any] = {name: [each.get(name) for each in columns] for name in names}
            known |= {name: [get(item) for item in items] for name, get in self.style.arguments.items()}
        else:
            known = {**columns[0], **{name: get(items[0]) for name, get in self.style.arguments.items()}}
        given = {name: value for name, value in known.items() if name not in self.options and self._takes(name)}
        return self.function(**given, **self.options)

    def _takes(self, name: str) -> bool:
        return self.accepts is None or name in self.accepts


def check_name(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a `reward.name` that cannot be right, without importing anything.

    Raises:
        UserError: it is neither auto, nor built in, nor `module:function`; or a built-in one is given options.
    """
    if ":" not in name:
        known = ["auto", *BUILTIN]
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            raise UserError(
                f"reward.name={name} is neither built in ({', '.join(known)}) nor module:function",
                f"set reward.name={nearest[0]}" if nearest else f"set reward.name={name}:FUNCTION",
            )
        if options and name not in WITH_OPTIONS:
            raise UserError(
                f"reward.options is set, but reward.name={name} takes none",
                "remove reward.options, or name a module:function",
            )


def load_reward(name: str, options: Mapping[str, Any], directory: Path) -> Reward:
    """Import a reward and check its signature.

    Args:
        name: a built-in reward, `package.module:function`, or `path/to/file.py:function`. Modules are looked for in
            `directory` first, then where Python finds them.
        options: `reward.options`.
        directory: paths are relative to it.

    Raises:
        UserError: there is no such module or function, it cannot be imported, or it cannot be called as it must be.
    """
    check_name(name, options)
    if name in BUILTIN:
        warm_up(name)
        _check_pattern(options.get("pattern"), name)
        return _inspect(name, BUILTIN[name], options)
    found = load_object(name, "reward.name", directory)
    if inspect.isclass(found):
        return _of_class(name, found, options)
    return _inspect(name, found, options)


def _check_pattern(pattern: Any, name: str) -> None:
    if name == "format" and pattern is not None:
        try:
            re.compile(pattern, re.DOTALL)
        except (re.error, TypeError) as error:
            raise UserError(
                f"reward.options.pattern={pattern!r} is no regular expression: {error}", "write one of Python's re"
            ) from None


def _of_class(name: str, cls: type, options: Mapping[str, Any]) -> Reward:
    """A class: SkyRL's environments, one for each sample; of others one object, made with the options."""
    if callable(getattr(cls, "step", None)):
        return Reward(Environment(cls, options), {}, frozenset({"item"}), frozenset(), SKYRL)
    if "__call__" not in {key for each in cls.__mro__[:-1] for key in vars(each)}:
        raise UserError(
            f"reward.name={name} is a class whose objects cannot be called, and no environment with step()",
            f"name a function: {_WANTED}",
        )
    try:
        made = cls(**options)
    except Exception as error:  # whatever the user's class does
        raise UserError(
            f"reward.name={name}: making an object of the class with reward.options failed: "
            f"{type(error).__name__}: {error}",
            f"set reward.options to what its constructor takes, {_signature(cls)}",
        ) from error
    return _inspect(name, made, {}, made_of_class=True)


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "whatever that is"


def _inspect(name: str, function: Any, options: Mapping[str, Any], *, made_of_class: bool = False) -> Reward:
    if not callable(function):
        raise UserError(f"reward.name={name} is of type {type(function).__name__}, not a function", f"write {_WANTED}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:  # some compiled functions hide theirs
        raise UserError(f"reward.name={name} has no readable signature", f"wrap it: {_WANTED}") from error
    parameters = signature.parameters
    keywords = {p.name: p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    by_position = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    style = recognise(keywords, made_of_class=made_of_class)
    answers = {"response", "solution_str", "solution_strs", "completions"}
    if by_position or not (answers & keywords.keys() or takes_any):
        problem = f"takes {by_position[0]} by position only" if by_position else "does not take response"
        raise UserError(
            f"reward.name={name} {problem}; its signature is {signature}",
            f"write {_WANTED}; functions written for verl, TRL, AReaL, SkyRL and Trinity-RFT are taken as they are",
        )
    _check_options(name, options, style, keywords, str(signature), takes_any=takes_any)
    columns = {key: p for key, p in keywords.items() if key not in style.arguments and key not in options}
    if only := [key for key in _TRAINER_ONLY if key in columns and columns[key].default is inspect.Parameter.empty]:
        raise UserError(
            f"reward.name={name} needs {only[0]}, which only TRL's trainer has; its signature is {signature}",
            f"give {only[0]} a default of None, and leave it unused where it is None",
        )
    anything = takes_any and style.columns
    return Reward(
        function=function,
        options=dict(options),
        accepts=None if anything else _accepted(keywords, style, options, takes_any=takes_any),
        requires=frozenset(key for key, p in columns.items() if p.default is p.empty),
        style=style,
        waits=_waits(function),
    )


def _accepted(
    keywords: Mapping[str, Any], style: Style, options: Mapping[str, Any], *, takes_any: bool
) -> frozenset[str]:
    names = {*keywords, *(style.arguments if takes_any else ())}
    return frozenset(names) - frozenset(options)


def _waits(function: Any) -> bool:
    """Whether a call gives something to wait for."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _check_options(
    name: str,
    options: Mapping[str, Any],
    style: Style,
    keywords: Mapping[str, Any],
    signature: str,
    *,
    takes_any: bool,
) -> None:
    for key in options:
        if key in style.arguments:
            raise UserError(f"reward.options.{key} would replace the {key} of every sample", "choose another name")
        if key not in keywords and not takes_any:
            nearest = difflib.get_close_matches(key, [k for k in keywords if k not in style.arguments], 1)
            raise UserError(
                f"reward.options.{key}: {name} takes no such argument; its signature is {signature}",
                f"did you mean {nearest[0]}?" if nearest else "remove it, or add the argument to the function",
            )
