"""Each signal that asks a run to stop does the same, once."""

import asyncio
import atexit
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pentad.run.signals import StopSignals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test does to the handlers of this process is undone."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    atexit.unregister(signal.alarm)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_and_further_ones_change_nothing(number: signal.Signals) -> None:
    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        for other in SIGNALS:
            signal.raise_signal(other)
        assert signals.received == number
    # The message about the first is being written now.
    for other in SIGNALS:
        signal.raise_signal(other)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_do_not_disturb_the_end_of_a_run(number: signal.Signals) -> None:
    with StopSignals() as signals:
        signals.ending(0)
        signal.raise_signal(number)
        assert signals.received is None


def test_handlers_come_back_and_what_was_ignored_stays_so() -> None:
    def mine(*_: object) -> None:
        pass

    signal.signal(signal.SIGTERM, mine)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        # As Ray does when it starts.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signals.install()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    with StopSignals():
        pass
    signal.signal(signal.SIGTERM, mine)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != mine
    assert signal.getsignal(signal.SIGTERM) == mine
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_in_an_event_loop_leaves_no_task_behind() -> None:
    """Not even one that is begun after it, by what was on its way already."""
    tasks: list[asyncio.Task[None]] = []

    async def wait() -> None:
        await asyncio.sleep(600)

    def begin() -> None:
        tasks.append(asyncio.ensure_future(wait()))

    async def interrupted() -> None:
        asyncio.get_running_loop().call_soon(begin)
        signal.raise_signal(signal.SIGINT)
        await wait()

    async def work() -> None:
        try:
            await asyncio.gather(wait(), interrupted(), wait())
        except asyncio.CancelledError:
            tasks.append(asyncio.ensure_future(wait()))
            raise

    with StopSignals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signals.run(work())
        assert signals.received == signal.SIGINT
    assert [task.cancelled() for task in tasks] == [True, True]


def test_a_failure_after_a_signal_is_not_the_first_cause() -> None:
    async def work() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("too late")

    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
        signals.run(work())


_HANGS_AT_EXIT = """
import time
from pentad.run import signals

class Hangs:
    def __init__(self):
        self.itself = self
    def __del__(self, sleep=time.sleep):
        print("hangs", flush=True)
        sleep(600)

hangs = Hangs()
signals.CLEANUP_S = 1.0
with signals.StopSignals() as stop:
    stop.ending(1)
"""


def test_an_interpreter_that_does_not_end_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", _HANGS_AT_EXIT], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, b"hangs\n"), done.stderr
