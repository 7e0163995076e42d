"""Processes that compute together on this machine, one a rank.

Invariant: a call returns the answer of every rank, or raises the first cause as soon as one of them has failed or the
deadline has passed. No process outlives its parent, whatever ends it.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Self

from pentad.errors import UserError

# After the first failure, others may report what really happened before it is judged.
_GRACE_S = 1.0
_LOG_LINES = 20
_PR_SET_PDEATHSIG = 1


class RankFailedError(Exception):
    """A rank raised, died or did not answer; the message says which, and why."""


class Ranks:
    """Processes that run one function after the other, each time all of them.

    Args:
        number: how many there are.
        start: `fork` inherits all that is imported and starts at once, and is wrong once CUDA is in use here;
            `spawn` starts from nothing.
    """

    def __init__(self, number: int, start: Literal["fork", "spawn"]) -> None:
        context: Any = multiprocessing.get_context(start)
        self._folder = tempfile.TemporaryDirectory(prefix="pentad-ranks-")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._calls = 0
        try:
            for rank in range(number):
                ours, theirs = context.Pipe()
                # A fork has copies of our ends as well, and would never see them closed.
                inherited = [*self._pipes, ours] if start == "fork" else []
                arguments = (rank, theirs, self._log(rank), os.getpid(), inherited)
                process = context.Process(target=_serve, args=arguments, daemon=True, name=f"pentad rank {rank}")
                with warnings.catch_warnings():
                    # Threads of this process are lost in the child, which has no use for them.
                    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
                    process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._processes)

    def call(self, function: Callable[..., Any], world: int, *arguments: Any, deadline_s: float) -> list[Any]:
        """`function(rank, meeting, *arguments)` on the first `world` ranks, in order of rank.

        Args:
            function: known by its module and name; its arguments and its answer are pickled.
            deadline_s: for all of it. `meeting` is a place for torch.distributed, of this call alone.

        Raises:
            UserError: raised by a rank.
            RankFailedError: a rank failed otherwise. These processes are of no use then.
        """
        self._calls += 1
        meeting = f"file://{self._folder.name}/meeting-{self._calls}"
        for pipe in self._pipes[:world]:
            pipe.send((function, (meeting, *arguments)))
        return self._collect(world, time.monotonic() + deadline_s, deadline_s)

    def close(self) -> None:
        """End all processes at once."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _collect(self, world: int, end: float, deadline_s: float) -> list[Any]:
        answers: dict[int, Any] = {}
        failures: list[tuple[float, int, str | UserError]] = []
        waiting = {self._pipes[rank]: rank for rank in range(world)}
        while waiting:
            ready = wait(list(waiting), max(0.0, end - time.monotonic()))
            if not ready:
                break
            for pipe in [pipe for pipe in waiting if pipe in ready]:
                rank = waiting.pop(pipe)
                answer: Any
                try:
                    moment, fine, answer = pipe.recv()
                except (EOFError, ConnectionError):
                    # It died before the others could notice.
                    moment, fine, answer = 0.0, False, self._death(rank)
                if fine:
                    answers[rank] = answer
                else:
                    failures.append((moment, rank, answer))
                    end = min(end, time.monotonic() + _GRACE_S)
        if failures:
            _, rank, cause = min(failures, key=lambda failure: failure[0])
            if isinstance(cause, UserError):
                raise cause
            raise RankFailedError(f"rank {rank}: {cause}")
        if waiting:
            late = ", ".join(str(rank) for rank in sorted(waiting.values()))
            raise RankFailedError(f"rank {late} did not answer within {deadline_s:g} s")
        return [answers[rank] for rank in range(world)]

    def _death(self, rank: int) -> str:
        process = self._processes[rank]
        process.join(_GRACE_S)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        lines = (
            self._log(rank).read_text(errors="replace").splitlines()[-_LOG_LINES:] if self._log(rank).exists() else []
        )
        return "\n".join([how, *lines])

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"rank-{rank}.log"


def _serve(rank: int, pipe: Connection, log: Path, parent: int, inherited: list[Connection]) -> None:
    """Answer calls until the parent is gone."""
    for connection in inherited:
        connection.close()
    _end_with(parent)
    # Ctrl-C reaches the whole process group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _write_to(log)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            os._exit(0)
        try:
            answer = (time.monotonic(), True, function(rank, *arguments))
        except UserError as error:
            answer = (time.monotonic(), False, error)
        except BaseException as error:
            trace = "".join(traceback.format_tb(error.__traceback__)[-4:])
            answer = (time.monotonic(), False, f"{type(error).__name__}: {error}\n{trace}".rstrip())
        pipe.send(answer)
        if not answer[1]:
            # At a regular exit it would wait for peers in a collective.
            os._exit(1)


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _write_to(log: Path) -> None:
    """Send what this process and its libraries print to a file; the table belongs to the parent."""
    target = log.open("a", buffering=1)
    os.dup2(target.fileno(), 1)
    os.dup2(target.fileno(), 2)
    sys.stdout = sys.stderr = target
