"""Signals that ask a run to stop.

Invariant: while a run can save, the first signal asks it to save and end, and the second ends it at once; otherwise the
first one does, by `KeyboardInterrupt`. Further ones change nothing; so does any signal after the results are written.
Once a run is ending, by a signal or a failure, its clean-up takes at most `CLEANUP_S` seconds,
whatever it waits for, and so does the end of the interpreter after it.
"""

import asyncio
import atexit
import math
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

CLEANUP_S = 15.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopSignals:
    """Handles SIGINT, SIGTERM, SIGHUP and SIGUSR1 while the block runs; outside the main thread it leaves them alone.

    SIGUSR1 is what Slurm can be asked to send some time before it ends a job.

    Args:
        status: says what is being done.

    Attributes:
        received: the first signal.
        during: what was being done when it came.
    """

    def __init__(self, status: Callable[[], object] = str) -> None:
        self.received: signal.Signals | None = None
        self.during = ""
        self._status = status
        # Times that a failed run starts again: a failure does not end the process then.
        self.restarts = 0
        self._ask: Callable[[], object] | None = None
        self._cancel: Callable[[], object] | None = None
        self._ending = False
        self._finished: Callable[[], bool] = lambda: False
        self._previous: dict[signal.Signals, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # nohup and shells that start jobs in the background ask for signals to be ignored.
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            self._previous = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            # An impatient second Ctrl-C must not turn the message about the first into a traceback.
            signal.signal(number, signal.SIG_IGN if self.received else handler)
        self._previous = {}

    def install(self) -> None:
        """Handle the signals (again: Ray takes SIGTERM for itself when it starts)."""
        for number in self._previous:
            signal.signal(number, self._stop)

    @property
    def exit_code(self) -> int:
        """Of a process that a signal ended: 128 and the signal's number, as in shells; 130 without a signal."""
        return 128 + (signal.SIGINT if self.received is None else self.received)

    @contextmanager
    def asking(self, ask: Callable[[], object]) -> Generator[None]:
        """While the block runs, the first signal calls `ask`, which has the run save and end, and nothing else."""
        self._ask = ask
        try:
            yield
        finally:
            self._ask = None

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """`asyncio.run`; a signal that ends the run cancels `work`.

        An exception in the midst of an event loop would leave tasks that have not begun. They would begin while the
        others are cancelled, and be destroyed with the interpreter.

        Raises:
            KeyboardInterrupt: a signal has ended the run.
        """

        async def main() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()

            def cancel() -> None:
                if task is not None and not loop.is_closed():
                    loop.call_soon_threadsafe(task.cancel)

            self._cancel = cancel
            return await work

        try:
            return asyncio.run(main())
        except BaseException:
            if self._ending and not self._finished():
                raise KeyboardInterrupt from None
            raise
        finally:
            self._cancel = None

    def finished(self, when: Callable[[], bool] = lambda: True) -> None:
        """The results are written: a signal from now on only limits the time of the clean-up, and the run succeeds.

        Args:
            when: tells, whenever a signal comes, whether that is so.
        """
        self._finished = when

    def ending(self, code: int) -> None:
        """The run is over: let nothing disturb its clean-up, and let that take `CLEANUP_S` at most.

        Args:
            code: exit code of the process if it takes longer.
        """
        if self.restarts and self.received is None:
            return
        self._ending = True
        if self._timer is None:
            # Leaving without clean-up leaves nobody behind: the kernel ends a cluster that was started for the run.
            self._timer = threading.Timer(CLEANUP_S, self._leave, [code])
            self._timer.daemon = True
            self._timer.start()
            # While the interpreter ends itself, none of its threads runs: then the kernel ends the process.
            atexit.register(signal.alarm, math.ceil(CLEANUP_S))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._ending:
            return
        if first := self.received is None:
            self.received, self.during = signal.Signals(number), str(self._status())
        if self._finished():
            self.ending(0)
            return
        if first and self._ask is not None:
            self._ask()
            return
        # Armed here, because an interrupt that hits a destructor is swallowed there.
        self.ending(self.exit_code)
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()

    def _leave(self, code: int) -> None:
        os.write(2, f"clean-up took longer than {CLEANUP_S:.0f} s; leaving without it\n".encode())
        os._exit(code)
