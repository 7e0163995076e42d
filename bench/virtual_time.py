"""An event loop whose clock jumps: where nothing is to be done now, it is the time of the next timer at once.

Invariant: callbacks run in the order of their times, as they would in real time; a loop in which nothing can happen any
more says so instead of waiting for ever. It is not for code that waits for threads or sockets.

Example::

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())  # asyncio.sleep(3600) takes no time
"""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, which begins at 0."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Jumping(self._jump))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def _jump(self, seconds: float) -> None:
        self._now += seconds


class _Jumping(selectors.DefaultSelector):
    """Does not wait: it moves the clock."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[Any]:
        """What is ready now.

        Raises:
            RuntimeError: nothing is, and no timer is set.
        """
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everything waits, and no timer is set")
            self._jump(max(0.0, timeout))
        return ready
