"""What a reward process does: loads functions and calls them.

Invariant: a reward that raises or returns no number gives a result that says so, for that sample alone; nothing here
imports torch or transformers.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    """Answered by `Loaded`, or by the `UserError` that says why not.

    Attributes:
        key: by which it is asked for.
    """

    key: str
    name: str
    options: Mapping[str, Any]
    directory: str


@dataclass(frozen=True)
class Loaded:
    """The reward is there.

    Attributes:
        requires: names that rows must have a value for.
        together: one call scores all responses to a prompt, or calls for them run at the same time.
        tokens: it is given the tokens of responses.
        shown: how it is called, where that is not Pentad's way: whose way, and the call.
    """

    requires: frozenset[str]
    together: bool = False
    tokens: bool = False
    shown: tuple[str, str] | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """Answered by a tuple of `RewardResult`, one for each item.

    Attributes:
        key: of the reward.
        items: one, unless the reward takes several together.
        timeout_s: of each asynchronous call.
    """

    key: str
    items: tuple[RewardItem, ...]
    timeout_s: float


class RewardHandler:
    """Answers requests; keeps the functions that were loaded."""

    def __init__(self) -> None:
        self._rewards: dict[str, Reward] = {}

    def __call__(self, request: LoadRequest | ScoreRequest) -> Loaded | tuple[RewardResult, ...]:
        """Load a reward, or score items with one that was loaded.

        Raises:
            UserError: the reward cannot be loaded.
        """
        if isinstance(request, ScoreRequest):
            return score_together(self._rewards[request.key], request.items, request.timeout_s)
        reward = load_reward(request.name, request.options, Path(request.directory))
        self._rewards[request.key] = reward
        style = reward.style
        return Loaded(
            reward.requires,
            together=style.batch or reward.waits,
            tokens=bool({"response_ids", "completion_ids"} & style.arguments.keys()),
            shown=(style.name, style.shown) if style.shown else None,
        )


def score(reward: Reward, item: RewardItem) -> RewardResult:
    """Call the reward for one sample; see `score_together`."""
    return score_together(reward, [item], math.inf)[0]


def score_together(reward: Reward, items: Sequence[RewardItem], timeout_s: float) -> tuple[RewardResult, ...]:
    """Call the reward and read what it returns; what it raises or returns in error becomes a failure.

    A call for several samples that raises is made again for each of them, so that the others keep their scores.
    """
    begun = time.perf_counter()
    if reward.style.batch:
        results = _score_batch(reward, items, timeout_s)
        if len(items) > 1 and results[0].failure == "exception":
            results = [_score_batch(reward, [item], timeout_s)[0] for item in items]
    elif reward.waits:
        results = asyncio.run(_score_at_once(reward, items, timeout_s))
    else:
        results = [_score_one(reward, item) for item in items]
    each = (time.perf_counter() - begun) / max(1, len(items))
    return tuple(replace(result, seconds=each) for result in results)


def _score_one(reward: Reward, item: RewardItem) -> RewardResult:
    try:
        value = reward.call([item])
    except BaseException as error:  # SystemExit too: a reward that calls sys.exit() costs one sample
        return _raised(error)
    return read_value(reward, value)


async def _score_at_once(reward: Reward, items: Sequence[RewardItem], timeout_s: float) -> list[RewardResult]:
    """Asynchronous calls, all at the same time."""

    async def one(item: RewardItem) -> RewardResult:
        try:
            value = await asyncio.wait_for(reward.call([item]), None if math.isinf(timeout_s) else timeout_s)
        except TimeoutError:
            return RewardResult(0.0, "timeout", f"the reward took longer than reward.timeout_s={timeout_s:g}")
        except (KeyboardInterrupt, SystemExit) as error:
            return _raised(error)
        except Exception as error:
            return _raised(error)
        return read_value(reward, value)

    return list(await asyncio.gather(*(one(item) for item in items)))


def _score_batch(reward: Reward, items: Sequence[RewardItem], timeout_s: float) -> list[RewardResult]:
    async def wait(value: Any) -> Any:
        return await asyncio.wait_for(value, None if math.isinf(timeout_s) else timeout_s)

    try:
        values = reward.call(items)
        if inspect.isawaitable(values):
            values = asyncio.run(wait(values))
        if hasattr(values, "tolist"):  # an array or a tensor
            values = values.tolist()
    except BaseException as error:
        return [_raised(error)] * len(items)
    if not isinstance(values, list | tuple) or len(values) != len(items):
        found = f"{len(values)} values" if isinstance(values, list | tuple) else repr(values)
        message = f"returned {found} for {len(items)} responses; a list of as many numbers is needed"
        return [RewardResult(0.0, "bad_value", message[:MAX_MESSAGE])] * len(items)
    return [read_value(reward, value) for value in values]


def _raised(error: BaseException) -> RewardResult:
    return RewardResult(0.0, "exception", f"{type(error).__name__}: {error}{where(error)}"[:MAX_MESSAGE])


def read_value(reward: Reward, value: Any) -> RewardResult:
    """The result that a reward's value means."""
    if value is None and reward.style.batch:
        return RewardResult(0.0, applies=False)
    metrics: dict[str, float] = {}
    if isinstance(value, Mapping):
        numbers = {str(key): finite_number(other) for key, other in value.items() if key != "score"}
        metrics = {key: number for key, number in numbers.items() if number is not None}
        if "score" not in value and reward.style.sums and value and len(metrics) == len(numbers):
            return RewardResult(math.fsum(metrics.values()), metrics=metrics)
        if "score" not in value:
            return _bad(f"a dict without 'score': keys {', '.join(map(str, value))}")
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
