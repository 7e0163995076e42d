"""Bringing a model's files to engines, without a trainer.

Invariant: what the engines hold is, bit for bit, what was read and cast to their dtype, or an error says what is not.
The path is that of a publication, with the driver in the place of the trainer's ranks.
"""

import asyncio
from pathlib import Path

from pentad.cluster.engines import Engines
from pentad.cluster.object_store import ObjectStore
from pentad.cluster.processes import Processes
from pentad.weights.checkpoint_model import open_weights
from pentad.weights.mapping import expected_shapes
from pentad.weights.proof import check_checksums
from pentad.weights.source import load_config

_PHASE = "loading of the weights"


class FileWeights:
    """The weights of a model directory, for engines.

    Args:
        directory: as `pentad.weights.source.resolve_model` gives it.
        engines: built, without weights.
        store: that the weights travel through.
        processes: of the run.
        deadline_s: longest time that it may take, in seconds.
    """

    def __init__(
        self, directory: Path, engines: Engines, store: ObjectStore, processes: Processes, deadline_s: float
    ) -> None:
        self._directory, self._engines, self._store = directory, engines, store
        self._processes, self._deadline_s = processes, deadline_s
        # An engine that is lost is replaced, and all get the weights again.
        engines.revival.publish_again = self._bring
        engines.revival.published.set()

    async def bring(self) -> None:
        """Have every engine take all weights; engines sample afterwards.

        Raises:
            UserError: the files cannot be read.
            SyncError: a tensor did not arrive as it was read.
            RunFailedError: a process failed.
        """
        async with self._engines.revival.lock:
            await self._bring()

    async def _bring(self) -> None:
        engines = self._engines
        await engines.pause(abort=False)
        await engines.wake()
        names = expected_shapes(load_config(self._directory))
        reader = open_weights(self._directory)
        channel = self._store.channel(1, len(engines.names), engines.dtype)
        tensors = ((name, reader.get(name)) for name in names)
        sending = asyncio.ensure_future(asyncio.to_thread(channel.send, tensors))

        def ended(task: asyncio.Future[dict[str, int]]) -> None:
            if not task.cancelled() and task.exception() is not None:
                channel.close("the files could not be read")

        sending.add_done_callback(ended)
        try:
            (held,) = await self._processes.wait([engines.start_loading(channel, 0)], _PHASE, self._deadline_s)
            sent = await sending
        except Exception:
            channel.close("the loading of the weights has ended")
            (cause,) = await asyncio.gather(sending, return_exceptions=True)
            if isinstance(cause, Exception):
                raise cause from None
            raise
        for engine, found in zip(engines.names, held, strict=True):
            check_checksums(sent, found, engine)
        await engines.resume()
