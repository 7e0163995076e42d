"""The real command in a process, and every process that comes of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from zygote import DUMP, OF_TESTS, PATIENCE_S, Forked, zygote

# How much slower than an idle one a machine may be.
PATIENCE = 4

_MARK = "PENTAD_TEST_RUN"
_PATIENT = f"""
import faulthandler, sys
from pentad.cli.main import main
from pentad.run import signals
signals.CLEANUP_S = {PATIENCE_S}
faulthandler.register({DUMP:d}, file=2)
sys.exit(main())
"""


def _users_environment() -> dict[str, str]:
    """Without what the tests set for themselves."""
    return {name: value for name, value in os.environ.items() if name not in OF_TESTS}


class Command:
    """`pentad ARGUMENTS` in a process group of its own, and every process that comes of it.

    Args:
        folder: takes its output, and is its working directory.
        cold: in a new Python; otherwise it is forked from one that has the imports (see `zygote`).
        patient: let it clean up for two minutes instead of 15 s, which a busy machine may need.
    """

    def __init__(self, folder: Path, *arguments: str, cold: bool = False, patient: bool = False) -> None:
        self._mark = uuid.uuid4().hex
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        environment = {**_users_environment(), _MARK: self._mark}
        for file in (self._out, self._err):
            file.write_text("")
        self.process: subprocess.Popen[bytes] | Forked
        # Where there are GPUs, the process that is forked may have asked for them.
        if not cold and not Path("/dev/nvidiactl").exists():
            self.process = zygote().start(arguments, folder, (self._out, self._err), environment, patient=patient)
            return
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *(["-c", _PATIENT] if patient else ["-m", "pentad.cli"]), *arguments],
                cwd=folder,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def wait_until(self, condition: Callable[[], object], what: str, timeout_s: float = 180) -> None:
        """Wait until a condition holds; fails if the command ends first."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.stdout}{self.stderr}"
            assert time.monotonic() < end, f"no {what} within {timeout_s} s: {self.stdout}{self.stderr}"
            time.sleep(0.05)

    def wait_for(self, text: str) -> None:
        """Wait until standard output has a text."""
        self.wait_until(lambda: text in self.stdout, repr(text))

    def wait_for_worker(self, name: str) -> None:
        """Wait until a process with that in its title or command line runs."""
        self.wait_until(lambda: self.find_worker(name), f"process {name}")

    def wait_for_clean_up(self, timeout_s: float = 60) -> None:
        """Wait until one of the processes that run now has ended."""
        running, end = self.processes(), time.monotonic() + timeout_s
        while len(psutil.wait_procs(running, timeout=0.02)[1]) == len(running):
            assert time.monotonic() < end, f"no process ended within {timeout_s} s: {self.stdout}{self.stderr}"

    def processes(self) -> list[psutil.Process]:
        """All live processes of the run, whoever their parent is: a mark in their environment tells them."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.pid == self.process.pid or process.environ().get(_MARK) == self._mark
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def find_worker(self, name: str) -> psutil.Process | None:
        """A process of the run by what stands in its title, as `ray::TrainerActor`."""
        for process in self.processes():
            try:
                if name in " ".join(process.cmdline()):
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    def worker(self, name: str) -> psutil.Process:
        """As `find_worker`, of a process that must be there."""
        process = self.find_worker(name)
        assert process is not None, f"no process {name}: {[p.cmdline()[:1] for p in self.processes()]}"
        return process

    def signal_group(self, number: signal.Signals) -> None:
        """What Ctrl-C in a terminal does."""
        os.killpg(self.process.pid, number)

    def ends_within(self, seconds: float) -> int:
        """The exit code; fails if the command, or any process that it started, is left after so many seconds.

        Args:
            seconds: on an idle machine with two cores; a slower one is given several times as long.
        """
        seconds *= PATIENCE
        end = time.monotonic() + seconds
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {seconds} s\n{self._state()}") from None
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, f"left after {seconds} s: {[' '.join(process.cmdline()) for process in left]}"
        return code

    def _state(self) -> str:
        """What the command has said, its processes, and the stacks of its own threads where it can be asked."""
        self._dump_stacks()
        lines = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                lines.append(f"{process.pid} {process.status()} {process.num_threads()} {process.cmdline()}")
        return "\n".join(["stdout:", self.stdout, "stderr:", self.stderr, "processes:", *lines])

    def _dump_stacks(self) -> None:
        """Have them written to standard error. Otherwise the signal would end the process."""
        caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{self.process.pid}/status").read_text(), re.MULTILINE)
        if caught is not None and int(caught[1], 16) & 1 << (DUMP - 1):
            self.process.send_signal(DUMP)
            time.sleep(1.0)

    def kill(self) -> None:
        """End everything."""
        for process in self.processes():
            process.kill()
        self.process.kill()
        self.process.wait()
