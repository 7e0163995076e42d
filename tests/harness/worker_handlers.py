"""Handlers for tests of worker pools; imported by the worker processes."""

import os
import time
from collections.abc import Callable
from typing import Any

from pentad.errors import UserError


def obey() -> Callable[[Any], Any]:
    """A handler that does what it is told: `(verb, argument)`."""
    return _obey


def _obey(request: tuple[str, Any]) -> Any:
    verb, argument = request
    match verb:
        case "echo":
            return argument
        case "print":
            print(argument)
            return len(argument)
        case "print and exit":
            print(argument)
            os._exit(3)
        case "sleep":
            time.sleep(argument)
        case "refuse":
            raise UserError(argument, "none")
        case "pid":
            return os.getpid()
    return None
