"""Which of several failures came first, and how it is told.

Invariant: when one rank fails, its peers fail after it in their collectives; what the user is shown is the first
cause, never an echo.
"""

from collections.abc import Mapping

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from pentad.engines.protocol import EngineFailedError
from pentad.errors import UserError
from pentad.record.outcome import RunFailedError

# Of a process that is lost.
_DEATHS = (ActorDiedError, ActorUnavailableError, OutOfMemoryError, EngineFailedError)
_ECHOES = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "distbackenderror",
    "rendezvous",
    "the other side",
    "went away",
)


def first_cause(errors: Mapping[str, BaseException], phase: str, logs: Mapping[str, str]) -> Exception:
    """The error to raise for a phase in which some processes failed.

    Args:
        errors: by the name of the process.
        phase: what was being done.
        logs: where each process writes its output.

    Returns:
        the user's own fault where there is one; else the failure that cannot be the echo of another.
    """
    unwrapped = {who: _unwrap(error) for who, error in errors.items()}
    for error in unwrapped.values():
        if isinstance(error, UserError):
            return error
    who, error = min(unwrapped.items(), key=lambda item: _suspicion(item[1]))
    facts = {"log": logs[who]} if who in logs else {}
    failed = RunFailedError(f"{who} failed during {phase}: {_describe(error)}", facts)
    if isinstance(error, _DEATHS):
        failed.died = who
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
    if isinstance(error, _DEATHS):
        return 0
    if isinstance(error, ObjectLostError):  # what it asked for went with the process that held it
        return 2
    text = f"{type(error).__name__} {error}".lower()
    return 2 if any(echo in text for echo in _ECHOES) else 1


def _describe(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return f"it could not start: {text.splitlines()[-1]}"
    if isinstance(error, OutOfMemoryError):
        return "Ray killed its process because the machine ran out of memory"
    if isinstance(error, ActorDiedError | ActorUnavailableError):
        return "its process died (killed by a signal, as the kernel does when memory runs out; or crashed)"
    first = text.splitlines()[0] if text else "no message"
    return f"{type(error).__name__}: {first}"
