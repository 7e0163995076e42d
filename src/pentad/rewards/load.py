"""Finding the function that `reward.name` names, and checking that it can be called.

Invariant: a reward that loads accepts `response` and every key of `reward.options`; what is wrong with one that does
not is said before the run starts. A reward is given what its signature names, and nothing else.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pentad.errors import UserError
from pentad.rewards.builtin import BUILTIN, warm_up
from pentad.user_code import load_object

ARGUMENTS = ("prompt", "response", "ground_truth")
_WANTED = "def reward(prompt, response, ground_truth, **columns) -> float"


@dataclass(frozen=True)
class Reward:
    """A reward function, ready to be called.

    Args:
        function: of `response`, and as it likes of `prompt`, `ground_truth`, columns of the row and options; returns a
            number or a dict with `score`.
        options: keyword arguments of every call.
        accepts: names that it takes besides the options, or None for any.
        requires: columns that it takes and has no default for; a row must have them.
    """

    function: Callable[..., Any]
    options: Mapping[str, Any]
    accepts: frozenset[str] | None
    requires: frozenset[str]

    def __call__(self, prompt: str, response: str, ground_truth: Any, columns: Mapping[str, Any]) -> Any:
        """Call it with what it names, or with everything if it takes `**kwargs`. Options go before columns."""
        known = {**columns, "prompt": prompt, "response": response, "ground_truth": ground_truth}
        given = {
            name: value
            for name, value in known.items()
            if name not in self.options and (self.accepts is None or name in self.accepts)
        }
        return self.function(**given, **self.options)


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
        if options:
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
        return _inspect(name, BUILTIN[name], options)
    return _inspect(name, load_object(name, "reward.name", directory), options)


def _inspect(name: str, function: Any, options: Mapping[str, Any]) -> Reward:
    if not callable(function):
        raise UserError(f"reward.name={name} is of type {type(function).__name__}, not a function", f"write {_WANTED}")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"reward.name={name} is asynchronous", f"write a plain function: {_WANTED}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:  # some compiled functions hide theirs
        raise UserError(f"reward.name={name} has no readable signature", f"wrap it: {_WANTED}") from error
    parameters = signature.parameters.values()
    keywords = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if by_position or not ("response" in keywords or takes_any):
        problem = f"takes {by_position[0]} by position only" if by_position else "does not take response"
        fix = "rename solution_str to response" if "solution_str" in keywords else f"write {_WANTED}"
        raise UserError(f"reward.name={name} {problem}; its signature is {signature}", fix)
    for key in options:
        if key in ARGUMENTS:
            raise UserError(f"reward.options.{key} would replace the {key} of every sample", "choose another name")
        if key not in keywords and not takes_any:
            nearest = difflib.get_close_matches(key, [k for k in keywords if k not in ARGUMENTS], 1)
            raise UserError(
                f"reward.options.{key}: {name} takes no such argument; its signature is {signature}",
                f"did you mean {nearest[0]}?" if nearest else "remove it, or add the argument to the function",
            )
    columns = {key: p for key, p in keywords.items() if key not in ARGUMENTS and key not in options}
    return Reward(
        function=function,
        options=dict(options),
        accepts=None if takes_any else frozenset(keywords) - frozenset(options),
        requires=frozenset(key for key, p in columns.items() if p.default is p.empty),
    )
