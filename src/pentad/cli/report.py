"""What is printed when a command fails: cause and fix for the user's errors; first cause and a file for our faults."""

import tempfile
import traceback
from collections.abc import Mapping

from pentad.errors import UserError
from pentad.record.outcome import RunFailedError


def user_error_in(error: BaseException) -> UserError | None:
    """The `UserError` that an exception is or carries: Ray keeps what a remote process raised as `cause`."""
    inner = getattr(error, "cause", None)
    if isinstance(inner, UserError):
        return inner
    return error if isinstance(error, UserError) else None


def report_user_error(error: UserError) -> None:
    """Print cause and fix on stderr."""
    fix = (("\n  fix: ", "bold green"), error.fix) if error.fix else ()
    _print(("error: ", "bold red"), error.cause, *fix)


def report_failed_run(error: RunFailedError) -> None:
    """Print what failed and where more is to be read on stderr, and write the traceback to a file."""
    _print(("failed: ", "bold red"), str(error), _lines({**error.facts, "traceback": _write_traceback(error)}))


def report_interrupt(error: KeyboardInterrupt) -> None:
    """Print on stderr when a command was interrupted, and what there is of its results."""
    _print(("interrupted ", "bold red"), str(error), _lines(getattr(error, "facts", {})))


def report_fault(error: BaseException) -> None:
    """Print the first cause on stderr, and write the traceback to a file."""
    first = _first_cause(error)
    message = f"{type(first).__name__}: {first}\n  This should not have happened"
    _print(("fault: ", "bold red"), message, _lines({"traceback": _write_traceback(error)}))


def _lines(facts: Mapping[str, str]) -> str:
    return "".join(f"\n  {name}: {value}" for name, value in facts.items())


def _write_traceback(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="pentad-", suffix=".traceback.txt", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return file.name


def _first_cause(error: BaseException) -> BaseException:
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        remote = getattr(error, "cause", None)
        hidden = None if error.__suppress_context__ else error.__context__
        below = remote if isinstance(remote, BaseException) else error.__cause__ or hidden
        if below is None:
            break
        error = below
    return error


def _print(*parts: str | tuple[str, str]) -> None:
    from rich.console import Console
    from rich.text import Text

    # soft_wrap keeps lines whole, so that a caret stays under its character.
    Console(stderr=True, highlight=False).print(Text.assemble(*parts), soft_wrap=True)
