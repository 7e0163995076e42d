"""Engines that were lost, and others in their place.

Invariant: an engine that died or was late is ended before another has its place; the other one generates only after it
was given the current weights; requests that were in flight are then sent again, or all get the error.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pentad.cluster.gang import Gang
from pentad.cluster.replica import Replica

_PHASE = "the restart of a rollout engine"


class Revival:
    """Replaces engines.

    Args:
        gang: the engines.
        arguments: of `EngineActor.build`, without the last.
        left: how many may be replaced (`rollout.max_engine_restarts`).

    Attributes:
        publish_again: brings the current weights to all engines; None before they have any.
        tell: is told of what was done.
    """

    def __init__(self, gang: Gang, arguments: tuple[Any, ...], left: int) -> None:
        self._gang, self._arguments, self._left = gang, arguments, left
        self._recoveries: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self.publish_again: Callable[[], Awaitable[None]] | None = None
        self.tell: Callable[[str], None] = print

    async def revive(self, error: Exception) -> bool:
        """Replace the engines that an error came from; the new ones have no weights.

        Returns:
            whether there were such engines, and enough restarts were left.
        """
        processes, names = self._gang.processes, self._gang.names
        lost = [rank for rank, name in enumerate(names) if processes.is_lost(name, error)]
        if not lost or len(lost) > self._left:
            return False
        self._left -= len(lost)
        began = time.monotonic()
        for rank in lost:
            await self._gang.replace(rank, _PHASE)
            arguments = (*self._arguments, self._gang.neighbours(rank))
            await self._gang.call_rank(rank, "build", *arguments, phase=_PHASE)
        started = f"{' and '.join(names[rank] for rank in lost)} started again in {time.monotonic() - began:.1f} s"
        self.tell(f"{str(error).splitlines()[0]}; {started} ({self._left} restarts left)")
        return True

    def recover(self, replica: Replica, error: Exception) -> None:
        """A replica has failed while requests were in flight; what follows is done in the background."""
        recovery = asyncio.ensure_future(self._recover(replica, error))
        self._recoveries.add(recovery)
        recovery.add_done_callback(self._recoveries.discard)

    async def _recover(self, replica: Replica, error: Exception) -> None:
        try:
            async with self._lock:
                if self.publish_again is None or not await self.revive(error):
                    replica.fail(error)
                    return
                await self.publish_again()
            self.tell(f"{replica.in_flight} requests of {self._gang.names[replica.rank]} are done again")
            replica.send_again()
        except Exception as later:
            replica.fail(later)
