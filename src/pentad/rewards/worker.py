"""What a reward process does: loads functions and calls them.

Invariant: a reward that raises or returns no number gives a result that says so; nothing here imports torch or
transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

from pentad.rewards.load import Reward, load_reward
from pentad.rewards.types import RewardItem, RewardResult
from pentad.user_code import where
from pentad.workers.worker import MAX_MESSAGE


@dataclass(frozen=True)
class LoadRequest:
    """Answered by `Loaded`, or by the `UserError` that says why not."""

    name: str
    options: Mapping[str, Any]
    directory: str


@dataclass(frozen=True)
class Loaded:
    """The reward is there; rows must have a value for each name in `requires`."""

    requires: frozenset[str]


@dataclass(frozen=True)
class ScoreRequest:
    """Answered by a `RewardResult`."""

    name: str
    item: RewardItem


class RewardHandler:
    """Answers requests; keeps the functions that were loaded."""

    def __init__(self) -> None:
        self._rewards: dict[str, Reward] = {}

    def __call__(self, request: LoadRequest | ScoreRequest) -> Loaded | RewardResult:
        """Load a reward, or score an item with one that was loaded.

        Raises:
            UserError: the reward cannot be loaded.
        """
        if isinstance(request, ScoreRequest):
            return score(self._rewards[request.name], request.item)
        self._rewards[request.name] = load_reward(request.name, request.options, Path(request.directory))
        return Loaded(self._rewards[request.name].requires)


def score(reward: Reward, item: RewardItem) -> RewardResult:
    """Call the reward and read what it returns; what it raises or returns in error becomes a failure."""
    try:
        value = reward(item.prompt, item.response, item.ground_truth, item.columns)
    except BaseException as error:  # SystemExit too: a reward that calls sys.exit() costs one sample
        return RewardResult(0.0, "exception", f"{type(error).__name__}: {error}{where(error)}"[:MAX_MESSAGE])
    metrics: dict[str, float] = {}
    if isinstance(value, Mapping):
        if "score" not in value:
            return _bad(f"a dict without 'score': keys {', '.join(map(str, value))}")
        numbers = {str(key): finite_number(other) for key, other in value.items() if key != "score"}
        metrics = {key: number for key, number in numbers.items() if number is not None}
        value = value["score"]
    number = finite_number(value)
    return _bad(repr(value)) if number is None else RewardResult(number, metrics=metrics)


def finite_number(value: Any) -> float | None:
    """The value of a finite number, or None for anything else.

    Numbers are int, float, bool, Decimal, Fraction, and scalars and tensors without dimensions of NumPy and torch.
    Text is none.
    """
    try:
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, Real | Decimal):
            return None
        number = float(value)
    except Exception:  # too large for a float; a signalling NaN; whatever an object of the user's raises
        return None
    return number if math.isfinite(number) else None


def _bad(value: str) -> RewardResult:
    return RewardResult(0.0, "bad_value", f"returned {value}; a finite number is needed"[:MAX_MESSAGE])
