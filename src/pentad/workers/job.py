"""What a pool of workers is asked to do, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Failure = Literal["timeout", "crash", "error"]


@dataclass(frozen=True)
class Preparation:
    """What a worker must have done before a job, such as an import; each worker does it once.

    Args:
        key: names it; equal keys mean equal requests.
        request: what the handler is given.
    """

    key: str
    request: Any


@dataclass(frozen=True)
class Job:
    """One call.

    Args:
        request: what the handler is given; None asks for the preparation only.
        preparation: what comes before it.
        call_s: longest time of the call, in seconds; None: as of all calls.
    """

    request: Any
    preparation: Preparation
    call_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        value: what the handler returned; None where it failed.
        failure: `timeout`: it was still running at its deadline; `crash`: its process ended; `error`: it could not be
            handed over. None where there is a value.
        message: says more about the failure.
    """

    value: Any = None
    failure: Failure | None = None
    message: str = ""


class PreparationError(Exception):
    """A worker did not survive a preparation, or did not end it in time.

    Attributes:
        preparation: which one.
        failure: how.
    """

    def __init__(self, preparation: Preparation, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.preparation = preparation
        self.failure = failure
