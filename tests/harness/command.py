"""The real command in a process, and every process that comes of it."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

_MARK = "PENTAD_TEST_RUN"


class Command:
    """`pentad ARGUMENTS` in a process group of its own, and every process that comes of it.

    Args:
        folder: takes its output, and is its working directory.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._mark = uuid.uuid4().hex
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pentad.cli", *arguments],
                cwd=folder,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env={**os.environ, _MARK: self._mark},
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def wait_for(self, text: str, timeout_s: float = 180) -> None:
        """Wait until standard output has a text."""
        end = time.monotonic() + timeout_s
        while text not in self.stdout:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.stdout}{self.stderr}"
            assert time.monotonic() < end, f"no {text!r} within {timeout_s} s: {self.stdout}{self.stderr}"
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """All live processes of the run, whoever their parent is: each has inherited a mark in its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def worker(self, name: str) -> psutil.Process:
        """A process of the run by what stands in its title, as `ray::TrainerActor`."""
        for process in self.processes():
            try:
                if name in " ".join(process.cmdline()):
                    return process
            except psutil.NoSuchProcess:
                continue
        raise AssertionError(f"no process {name}: {[p.cmdline()[:1] for p in self.processes()]}")

    def wait_for_worker(self, name: str, timeout_s: float = 180) -> psutil.Process:
        """Wait until a process with that in its title or command line runs."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                return self.worker(name)
            except AssertionError:
                assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.stdout}{self.stderr}"
                assert time.monotonic() < end, f"no process {name!r} within {timeout_s} s: {self.stdout}{self.stderr}"
                time.sleep(0.02)

    def wait_for_clean_up(self, timeout_s: float = 60) -> None:
        """Wait until one of the processes that run now has ended."""
        running, end = self.processes(), time.monotonic() + timeout_s
        while len(psutil.wait_procs(running, timeout=0.02)[1]) == len(running):
            assert time.monotonic() < end, f"no process ended within {timeout_s} s: {self.stdout}{self.stderr}"

    def signal_group(self, number: signal.Signals) -> None:
        """What Ctrl-C in a terminal does."""
        os.killpg(self.process.pid, number)

    def ends_within(self, seconds: float) -> int:
        """The exit code; fails if the command, or any process that it started, is left after so many seconds."""
        end = time.monotonic() + seconds
        code = self.process.wait(seconds)
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left, f"left after {seconds} s: {[' '.join(process.cmdline()) for process in left]}"
        return code

    def kill(self) -> None:
        """End everything."""
        for process in self.processes():
            process.kill()
        self.process.kill()
        self.process.wait()
