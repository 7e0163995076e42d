"""Small actors for tests of `pentad.cluster`."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import ray
from torch import Tensor

from pentad.cluster.process import GROUPS, Process, thread_share
from pentad.weights.transport.protocol import WeightChannel


@ray.remote(concurrency_groups=GROUPS)
class Worker(Process):
    """Works on one thread, as a trainer rank does."""

    def meet(self, mine: Path, other: Path) -> int:
        """Leave a file, and wait for another."""
        mine.touch()
        self._done = 5
        while not other.exists():
            time.sleep(0.01)
        return self.rank

    def fail(self, error: Exception, after: Path | None = None) -> None:
        """Fail at once, or when there is a file."""
        while after is not None and not after.exists():
            time.sleep(0.01)
        raise error

    def answer(self, value: object) -> object:
        return value

    def warn(self, text: str) -> None:
        logging.getLogger("pentad.engines").warning(text)

    def threads_on_one_core(self, processes: int) -> int:
        """`thread_share` on a machine that has one core."""
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return thread_share(processes)

    def send(self, channel: WeightChannel, tensors: Mapping[str, Tensor]) -> Mapping[str, int]:
        return channel.send(self._noting("sending", tensors.items()))

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


@ray.remote(concurrency_groups=GROUPS)
class Server(Process):
    """Works on many things at once, as an engine does."""

    async def meet(self, mine: Path, other: Path) -> int:
        """As `Worker.meet`; says so beside the file when it is cancelled."""
        mine.touch()
        self._done += 1
        try:
            while not other.exists():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            mine.with_suffix(".cancelled").touch()
            raise
        return self.rank

    async def warn(self, text: str) -> None:
        logging.getLogger("pentad.engines").warning(text)

    async def receive(self, channel: WeightChannel) -> dict[str, Tensor]:
        def take() -> dict[str, Tensor]:
            return {name: tensor.clone() for name, tensor in self._noting("receiving", channel.receive())}

        return await asyncio.to_thread(take)
