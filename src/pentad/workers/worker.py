"""One worker process: makes a handler, calls it, answers.

Invariant: it answers every request that it survives, imports neither torch nor transformers by itself, and does not
outlive its parent, not even while a call hangs.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import pickle
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pentad.errors import UserError

MAX_MESSAGE = 2000  # characters; a traceback or a huge repr must not flood the log

Handler = Callable[[Any], Any]
"""Turns a request into an answer; it may raise `UserError`. It is made once in each worker process."""


@dataclass(frozen=True)
class Answer:
    """What a worker sends back for each request.

    Attributes:
        value: what the handler returned.
        refusal: the `UserError` that it raised.
        error: what else went wrong; empty where nothing did.
    """

    value: Any = None
    refusal: UserError | None = None
    error: str = ""


def main(connection_fd: int, lifeline_fd: int, handler: str) -> None:
    """Serve requests until the connection closes.

    Args:
        connection_fd: one end of a duplex connection.
        lifeline_fd: read end of a pipe whose write end only the parent has.
        handler: `package.module:name` of a function without arguments that makes the handler.
    """
    _die_with_parent(lifeline_fd)
    module, _, name = handler.partition(":")
    handle: Handler = getattr(importlib.import_module(module), name)()
    with Connection(connection_fd) as connection:
        while True:
            try:
                message = connection.recv_bytes()
            except (EOFError, ConnectionError):
                return
            connection.send(_answer(message, handle))


def _die_with_parent(lifeline_fd: int) -> None:
    """Have the kernel end this process, and all that users' code starts, when the parent is gone.

    A closed pipe raises SIGIO, whose default action is to terminate. Unlike a thread that watches, this needs no
    help from Python, which a hanging call may have locked up; and unlike PR_SET_PDEATHSIG it does not fire when
    merely the thread ends that started this process.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())  # negative: the whole process group
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)
    parent = select.poll()  # not select(), which takes no descriptor above 1023
    parent.register(lifeline_fd, select.POLLIN)
    if parent.poll(0):  # the parent was gone before the signal was armed
        os._exit(1)


def _answer(message: bytes, handle: Handler) -> Answer:
    try:
        request = pickle.loads(message)
    except Exception as error:  # an object of a class that only the parent can import
        return Answer(error=f"the request cannot be unpickled: {error}"[:MAX_MESSAGE])
    try:
        return Answer(handle(request))
    except UserError as error:
        return Answer(refusal=error)
