"""A Python that has imported what `pentad train` imports, and forks itself for each command.

Invariant: it runs nothing itself and has no threads; a forked command has its own session, environment, directory and
files, runs from the arguments on as `python -m pentad.cli` does, and ends as a Python does. The zygote ends with the
process that started it.

Starting from nothing is five seconds of a processor; tests of what a command says at once do that.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_IMPORTED = (
    "pentad.cli.__main__",
    "pentad.run.run",
    "pentad.run.prepare",
    "pentad.run.training",
    "pentad.record.report",
    # What it imports when it needs it. That of the quickstart's model is two seconds.
    "pentad.record.tensorboard",
    "transformers.models.qwen3.modeling_qwen3",
)
# Variables that tests/conftest.py sets for the tests themselves.
OF_TESTS = ("OMP_NUM_THREADS", "TRITON_INTERPRET")
_LOOK_S = 0.02
PATIENCE_S = 120.0
"""How long a patient command may clean up."""
DUMP = signal.SIGUSR2
"""Has a forked command write the stacks of its threads to standard error, whatever they wait for."""


class Forked:
    """A command that the zygote has forked; it has of `subprocess.Popen` what the tests use."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self._zygote = zygote
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._zygote.ended().get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("pentad", timeout or 0.0)
            time.sleep(_LOOK_S)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process, as the tests see it.

    Args:
        environment: what its imports see.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        self._ended: dict[int, int] = {}

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        output: tuple[Path, Path],
        environment: Mapping[str, str],
        *,
        patient: bool,
    ) -> Forked:
        """Fork a command.

        Args:
            folder: its working directory.
            output: files that take standard output and standard error.
            patient: let it clean up for `PATIENCE_S`.
        """
        request = [list(arguments), str(folder), [str(file) for file in output], dict(environment), patient]
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        while (pid := self._read()) is None:
            pass
        return Forked(self, pid)

    def ended(self) -> dict[int, int]:
        """Exit codes of the commands that have ended, as of `subprocess`, by process number."""
        while select.select([self._process.stdout], [], [], 0)[0]:
            assert self._read() is None
        return self._ended

    def _read(self) -> int | None:
        """One line of the zygote: the number of a process that it has forked, or one that has ended."""
        line = self._process.stdout.readline()
        assert line, f"the zygote has ended with {self._process.wait()}"
        kind, pid, code = json.loads(line)
        if kind == "forked":
            return pid
        self._ended[pid] = code
        return None


@cache
def zygote() -> Zygote:
    """That of this session, with the environment that the first command has."""
    return Zygote({name: value for name, value in os.environ.items() if name not in OF_TESTS})


def _serve() -> None:
    """Fork until nobody asks any more. Returns in the child, which is to run the command."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready = select.select([0, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 1024)
            _report_ended()
        if 0 not in ready:
            continue
        line = _line()
        if not line:
            # Whoever asked is gone, and with it the tests.
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(woken)
            os.close(wake)
            _become(*json.loads(line))
            return
        _say("forked", pid, 0)


def _report_ended() -> None:
    with contextlib.suppress(ChildProcessError):
        while (status := os.waitpid(-1, os.WNOHANG))[0]:
            _say("ended", status[0], os.waitstatus_to_exitcode(status[1]))


def _line() -> bytes:
    """One request, unbuffered: a child must not have the next one."""
    taken = bytearray()
    while not taken.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        taken += byte
    return bytes(taken)


def _say(kind: str, pid: int, code: int) -> None:
    os.write(1, (json.dumps([kind, pid, code]) + "\n").encode())


def _become(arguments: list[str], folder: str, output: list[str], environment: dict[str, str], patient: bool) -> None:
    """Take the place of a new Python with these arguments."""
    os.setsid()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(output, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    faulthandler.register(DUMP, file=2)
    os.environ.clear()
    os.environ.update(environment)
    if patient:
        sys.modules["pentad.run.signals"].CLEANUP_S = PATIENCE_S
    # As `-m` does.
    sys.path[0] = folder
    sys.argv = [sys.modules["pentad.cli.__main__"].__file__, *arguments]


if __name__ == "__main__":
    for name in _IMPORTED:
        importlib.import_module(name)
    _serve()
    sys.exit(sys.modules["pentad.cli.__main__"].main())
