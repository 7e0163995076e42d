"""Engines that were lost, and others in their place.

Invariant: an engine that died or was late is ended before another has its place; the other one generates only after it
was given the current weights; requests that were in flight are then sent again, or all get the error. An engine that
has replaced a lost one is not ended for a failure of that one. While the trainer's weights are newer than what was
published, an engine that was replaced waits for the next publication.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pentad.cluster.gang import Gang
from pentad.cluster.processes import DeadlineError
from pentad.cluster.replica import Replica

_PHASE = "the restart of a rollout engine"


class Revival:
    """Replaces engines.

    Args:
        gang: the engines.
        arguments_of: gives those of `EngineActor.build`, for an engine's rank.
        left: how many may be replaced (`rollout.max_engine_restarts`).

    Attributes:
        publish_again: brings the current weights to all engines; None before they have any. To be called under `lock`.
        published: set while the trainer's weights are those that were published.
        lock: held while weights change or are published, and while engines are replaced.
        tell: is told of what was done.
        replaced: how often the engine of each rank was.
        replicas: by rank.
    """

    def __init__(self, gang: Gang, arguments_of: Callable[[int], tuple[Any, ...]], left: int) -> None:
        self._gang, self._arguments_of, self._left = gang, arguments_of, left
        self._recoveries: set[asyncio.Task[None]] = set()
        self.lock = asyncio.Lock()
        self.published = asyncio.Event()
        self.publish_again: Callable[[], Awaitable[None]] | None = None
        self.tell: Callable[[str], None] = print
        self.replaced = [0] * len(gang)
        self.replicas: Sequence[Replica] = ()

    async def revive(self, error: Exception) -> bool:
        """Replace the engines that an error came from; the new ones have no weights.

        Returns:
            whether there were such engines, and enough restarts were left.
        """
        names, lost = self._gang.names, self._lost(error)
        if not lost or len(lost) > self._left:
            return False
        began = time.monotonic()
        for rank in lost:
            # Also one with nothing to do: nothing is sent to it until it has weights.
            self.replicas[rank].lose(error)
        for rank in lost:
            await self._replace(rank)
        started = f"{' and '.join(names[rank] for rank in lost)} started again in {time.monotonic() - began:.1f} s"
        self.tell(f"{str(error).splitlines()[0]}; {started} ({self._left} restarts left)")
        return True

    def _lost(self, error: Exception) -> list[int]:
        """Ranks of the engines that an error came from."""
        names = self._gang.names
        return [rank for rank, name in enumerate(names) if self._gang.processes.is_lost(name, error)]

    async def asked[T](self, ask: Callable[[], Awaitable[T]]) -> T:
        """What all engines answer; where one dies meanwhile, it is replaced, given weights, and all are asked again."""
        while True:
            before = list(self.replaced)
            try:
                return await ask()
            except Exception as error:
                async with self.lock:
                    lost = self._lost(error)
                    if lost and all(self.replaced[rank] != before[rank] for rank in lost):
                        continue  # whoever else had noticed has replaced them meanwhile
                    if self.publish_again is None or isinstance(error, DeadlineError) or not await self.revive(error):
                        raise
                    await self.publish_again()

    def recover(self, replica: Replica, error: Exception) -> None:
        """A replica has failed while requests were in flight; what follows is done in the background."""
        recovery = asyncio.ensure_future(self._recover(replica, error))
        self._recoveries.add(recovery)
        recovery.add_done_callback(self._recoveries.discard)

    async def _replace(self, rank: int) -> None:
        """Start another engine in the place of one; and another, while restarts are left, if that does not start."""
        while True:
            self._left -= 1
            self.replaced[rank] += 1
            try:
                await self._gang.replace(rank, _PHASE)
                await self._gang.call_rank(rank, "build", *self._arguments_of(rank), phase=_PHASE)
                return
            except Exception as error:
                if not self._left or not self._gang.processes.is_lost(self._gang.names[rank], error):
                    raise

    async def _recover(self, replica: Replica, error: Exception) -> None:
        try:
            async with self.lock:
                if self.publish_again is None:
                    replica.fail(error)
                    return
                if self.replaced[replica.rank] == replica.generation:
                    if isinstance(error, DeadlineError) and sum(self.replaced) != replica.replaced_before:
                        replica.listen()  # it was paused while another got its weights
                        return
                    if not await self.revive(error):
                        replica.fail(error)
                        return
                    if self.published.is_set():
                        await self.publish_again()
            if not self.published.is_set():
                # The next publication may wait for these requests (`rollout.on_update: finish`).
                replica.fail(None)
                await self.published.wait()
            if replica.in_flight:
                self.tell(f"{replica.in_flight} requests of {self._gang.names[replica.rank]} are done again")
            replica.send_again(self.replaced[replica.rank])
        except Exception as later:
            replica.fail(later)
