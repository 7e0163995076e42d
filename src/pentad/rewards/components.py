"""The rewards that settings name: one, or several with weights.

Invariant: each component is named once and has a finite weight; a row's reward is the weighted sum of the scores of
the components that are for its data source.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pentad.config.schema.reward import RewardSettings
from pentad.errors import UserError
from pentad.rewards.types import RewardResult

_TAKEN = ("mean", "std", "failures")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, eq=False)  # one is itself alone, and a key of dictionaries
class Component:
    """One reward.

    Attributes:
        key: under which it is logged; empty for the only one.
        name: as `reward.name`.
        weight: of its score in the sum.
        options: keyword arguments of every call.
        data_sources: patterns (`*` for anything) of the data sources that it is for; empty for all.
        short: the setting is the name alone.
    """

    key: str
    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    data_sources: tuple[str, ...] = ()
    short: bool = False

    @property
    def setting(self) -> str:
        """The setting that names it."""
        return f"reward.functions.{self.key}" if self.key else "reward.name"

    def is_for(self, data_source: str) -> bool:
        """Whether it scores rows of a data source."""
        return not self.data_sources or any(fnmatch.fnmatchcase(data_source, each) for each in self.data_sources)


def components_of(settings: RewardSettings) -> tuple[Component, ...]:
    """The components of the reward, at least one.

    Raises:
        UserError: an entry of `reward.functions` is not well-formed.
    """
    if not settings.functions:
        return (Component("", settings.name, options=settings.options),)
    return tuple(_component(key, value) for key, value in settings.functions.items())


def _component(key: str, value: Any) -> Component:
    setting = f"reward.functions.{key}"
    if not _NAME.fullmatch(key) or key in _TAKEN:
        why = f"reward/{key} is a metric of its own" if key in _TAKEN else "it cannot name the metric reward/<name>"
        raise UserError(f"{setting}: {why}", "choose another key of letters, digits, '_', '-' and '.'")
    if isinstance(value, str):
        return Component(key, value, short=True)
    known = ("name", "weight", "options", "data_sources")
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(
            f"{setting} is {value!r}, neither the name of a reward nor a mapping with its name",
            f"write {key}: module:function, or {key}: {{name: module:function, weight: 0.5}}",
        )
    for name in value:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1)
            raise UserError(
                f"{setting}.{name} is not a setting of a reward ({', '.join(known)})",
                f"did you mean {nearest[0]}?" if nearest else f"put it into {setting}.options",
            )
    weight, options, sources = value.get("weight", 1.0), value.get("options") or {}, value.get("data_sources") or []
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise UserError(f"{setting}.weight is {weight!r}, not a number", f"write {setting}.weight=0.5")
    if not isinstance(options, Mapping):
        raise UserError(f"{setting}.options is {options!r}, not a mapping", "write options: {argument: value}")
    sources = [sources] if isinstance(sources, str) else sources
    if not isinstance(sources, list) or not all(isinstance(each, str) for each in sources):
        raise UserError(f"{setting}.data_sources is {sources!r}, not a list of texts", "write data_sources: [NAME]")
    return Component(key, value["name"], float(weight), dict(options), tuple(sources))


def combined(results: Mapping[Component, RewardResult]) -> RewardResult:
    """The reward of one sample from those of its components: the only one's, or the weighted sum.

    A sample of which a component failed has failed; so has one that no component has an opinion of.
    """
    if len(results) == 1 and not next(iter(results)).key:
        (result,) = results.values()
        return result if result.applies else _nothing("the reward returned None")
    scores = {c.key: r.score for c, r in results.items() if r.failure is None and r.applies}
    metrics = {f"{c.key}.{name}": value for c, r in results.items() for name, value in r.metrics.items()}
    seconds = sum(result.seconds for result in results.values())
    for component, result in results.items():
        if result.failure is not None:
            message = f"{component.key}: {result.message}"
            return RewardResult(0.0, result.failure, message, metrics, components=scores, seconds=seconds)
    if not scores:
        return _nothing("none of reward.functions has a score for it")
    total = math.fsum(c.weight * scores[c.key] for c in results if c.key in scores)
    if not math.isfinite(total):
        return RewardResult(0.0, "bad_value", f"the weighted sum is {total}", metrics, components=scores)
    return RewardResult(total, metrics=metrics, components=scores, seconds=seconds)


def _nothing(message: str) -> RewardResult:
    return RewardResult(0.0, "bad_value", f"{message}; a finite number is needed")
