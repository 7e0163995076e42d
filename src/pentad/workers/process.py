"""A worker process as its parent sees it.

Invariant: a worker is either usable or said to have died; after `kill` neither it nor anything it started is left,
and none of its file descriptors. What it prints is kept from the terminal.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from multiprocessing import Pipe
from typing import Any

from pentad.workers.output import WorkerOutput
from pentad.workers.worker import Answer


class WorkerDied(Exception):
    """The process at the other end is gone; says how."""


class WorkerProcess:
    """One process and the connection to it.

    Args:
        handler: as `pentad.workers.worker.main` takes it.

    Attributes:
        prepared: keys of the preparations that it has done.
        output: what it and all that it starts print.
    """

    def __init__(self, handler: str) -> None:
        self._ended = False
        self.prepared: set[str] = set()
        self.output = WorkerOutput()
        self.connection, theirs = Pipe()
        lifeline, self._lifeline = os.pipe()
        # Not multiprocessing: its spawn imports the main module again (in a Ray actor, all of Ray), and its fork
        # copies a process that runs threads.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from pentad.workers.worker import main; "
            f"main({theirs.fileno()}, {lifeline}, {handler!r})"
        )
        try:
            self._process = subprocess.Popen(
                # -u: what was printed before a crash is there; faulthandler: so is the place of the crash.
                [sys.executable, "-u", "-X", "faulthandler", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=self.output.file,
                stderr=self.output.file,
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,  # what it starts can be killed with it; Ctrl-C is ours to handle
            )
        finally:
            theirs.close()
            os.close(lifeline)

    def send(self, request: Any) -> None:
        """Hand over a request; the worker takes one at a time. Raises `WorkerDied` if nobody is there any more."""
        message = pickle.dumps(request)
        try:
            self.connection.send_bytes(message)
        except OSError as error:
            raise WorkerDied(self._how()) from error

    def receive(self) -> Answer:
        """The answer to the oldest request. Raises `WorkerDied` if it died before it answered."""
        try:
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied(self._how()) from error

    def _how(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "connection closed"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def end(self) -> None:
        """End the process and all that it started; its connection stays and gives `WorkerDied`. May be repeated."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """`end`, and give up all file descriptors. May be called again."""
        self.end()
        self._process.wait()
        self.connection.close()
        self.output.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
