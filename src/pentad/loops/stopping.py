"""Stopping a loop between two changes of the weights.

Invariant: work that is left has ended when `StopNow` is raised.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any


class StoppedError(Exception):
    """The loop has stopped because it was asked to.

    Attributes:
        saved: the step that the newest checkpoint is of; None: there is none.
    """

    def __init__(self, saved: int | None) -> None:
        super().__init__(saved)
        self.saved = saved


class StopNow(Exception):
    """Leave the step."""


class Stop:
    """Whether a loop was asked to stop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def request(self) -> None:
        """Ask; on the loop's thread."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody has asked."""
        return self._event.is_set()

    async def unless[T](self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns, if that comes before a stop is asked for.

        Raises:
            StopNow: a stop was asked for first; the work was cancelled.
        """
        if self.requested:
            work.close()
            raise StopNow
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise StopNow
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
