"""One reward process: loads functions, calls them, answers.

Invariant: it answers every request that it survives, imports neither torch nor transformers by itself, and does not
outlive its parent, not even while a call hangs.
"""

from __future__ import annotations

import fcntl
import math
import numbers
import os
import pickle
import select
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pentad.errors import UserError
from pentad.rewards.load import Reward, load_reward, where
from pentad.rewards.types import RewardItem, RewardResult

MAX_MESSAGE = 2000  # characters; a traceback or a huge repr must not flood the log


@dataclass(frozen=True)
class LoadRequest:
    """Answered by `Loaded`, or by the `UserError` that says why not."""

    name: str
    options: Mapping[str, Any]
    directory: str


@dataclass(frozen=True)
class Loaded:
    """The reward is there; rows must have the columns in `requires`."""

    requires: frozenset[str]


@dataclass(frozen=True)
class ScoreRequest:
    """Answered by a `RewardResult`."""

    name: str
    item: RewardItem


def main(connection_fd: int, lifeline_fd: int) -> None:
    """Serve requests until the connection closes.

    Args:
        connection_fd: one end of a duplex connection.
        lifeline_fd: read end of a pipe whose write end only the parent has.
    """
    _die_with_parent(lifeline_fd)
    rewards: dict[str, Reward] = {}
    with Connection(connection_fd) as connection:
        while True:
            try:
                message = connection.recv_bytes()
            except (EOFError, ConnectionError):
                return
            connection.send(_answer(message, rewards))


def _die_with_parent(lifeline_fd: int) -> None:
    """Have the kernel end this process, and all that a reward starts, when the parent is gone.

    A closed pipe raises SIGIO, whose default action is to terminate. Unlike a thread that watches, this needs no
    help from Python, which a hanging call may have locked up; and unlike PR_SET_PDEATHSIG it does not fire when
    merely the thread ends that started this process.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())  # negative: the whole process group
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline_fd], [], [], 0)[0]:  # the parent was gone before the signal was armed
        os._exit(1)


def _answer(message: bytes, rewards: dict[str, Reward]) -> Loaded | UserError | RewardResult:
    try:
        request = pickle.loads(message)
    except Exception as error:  # a ground truth of a class that only the parent can import
        return RewardResult(0.0, "exception", f"the sample cannot be unpickled: {error}"[:MAX_MESSAGE])
    if isinstance(request, LoadRequest):
        try:
            rewards[request.name] = load_reward(request.name, request.options, Path(request.directory))
        except UserError as error:
            return error
        return Loaded(rewards[request.name].requires)
    return score(rewards[request.name], request.item)


def score(reward: Reward, item: RewardItem) -> RewardResult:
    """Call the reward and read what it returns; what it raises or returns in error becomes a failure."""
    try:
        value = reward(item.prompt, item.response, item.ground_truth, item.extra)
    except BaseException as error:  # SystemExit too: a reward that calls sys.exit() costs one sample
        return RewardResult(0.0, "exception", f"{type(error).__name__}: {error}{where(error)}"[:MAX_MESSAGE])
    metrics: dict[str, float] = {}
    if isinstance(value, Mapping):
        if "score" not in value:
            return _bad(f"a dict without 'score': keys {', '.join(map(str, value))}")
        metrics = {str(k): float(v) for k, v in value.items() if k != "score" and _is_finite(v)}
        value = value["score"]
    if not _is_finite(value):
        return _bad(repr(value))
    return RewardResult(float(value), metrics=metrics)


def _is_finite(value: Any) -> bool:
    # numpy's bool is the one number-like scalar that is not registered as a number.
    is_number = isinstance(value, numbers.Real) or type(value).__name__ in ("bool", "bool_")
    try:
        return is_number and math.isfinite(value)
    except (OverflowError, TypeError, ValueError):
        return False


def _bad(value: str) -> RewardResult:
    return RewardResult(0.0, "bad_value", f"returned {value}; a finite number is needed"[:MAX_MESSAGE])
