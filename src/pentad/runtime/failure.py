"""Which of several failures came first, and how it is told.

Invariant: when one rank fails, its peers fail after it in their collectives; what the user is shown is the first
cause, never an echo.
"""

from collections.abc import Mapping

from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError

from pentad.errors import UserError

_ECHOES = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "distbackenderror", "rendezvous")


class RunFailedError(Exception):
    """A process of the run failed. The message names it, the phase and the cause."""


def first_cause(errors: Mapping[str, BaseException], phase: str) -> Exception:
    """The error to raise for a phase in which some processes failed.

    Args:
        errors: by the name of the process.
        phase: what was being done.

    Returns:
        the user's own fault where there is one; else the failure that cannot be the echo of another.
    """
    unwrapped = {who: _unwrap(error) for who, error in errors.items()}
    for error in unwrapped.values():
        if isinstance(error, UserError):
            return error
    who, error = min(unwrapped.items(), key=lambda item: _suspicion(item[1]))
    failed = RunFailedError(f"{who} failed during {phase}: {_describe(error)}")
    failed.__cause__ = errors[who]
    return failed


def _unwrap(error: BaseException) -> BaseException:
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, BaseException):
            return cause
    return error


def _suspicion(error: BaseException) -> int:
    """0 for what surely came first."""
    if isinstance(error, ActorDiedError | ActorUnavailableError | OutOfMemoryError):
        return 0
    text = f"{type(error).__name__} {error}".lower()
    return 2 if any(echo in text for echo in _ECHOES) else 1


def _describe(error: BaseException) -> str:
    if isinstance(error, ActorDiedError | ActorUnavailableError):
        text = str(error)
        if "memory" in text.lower():
            return "its process was killed because the machine ran out of memory"
        return "its process died (killed by a signal, or crashed)"
    text = str(error).strip() or "no message"
    first = text.splitlines()[0]
    return f"{type(error).__name__}: {first}"
