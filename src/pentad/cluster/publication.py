"""Bringing the policy's weights to the engines, and proving that they arrived.

Invariant: trainer ranks send while engines receive; after a publication every engine holds, bit for bit, what was
sent, or the run ends. Engines are paused meanwhile: running requests go on under the new weights once these are proven.
An engine that is lost meanwhile is replaced, and all is sent again. Weights are published under the version that they
have: never while they are trained, nor between the optimizer steps of a batch.
"""

import asyncio

from pentad.algorithms.protocol import Loss
from pentad.cluster.engines import Engines
from pentad.cluster.gang import Progress
from pentad.cluster.processes import Call, DeadlineError
from pentad.cluster.trainers import RoleTrainer, Trainers
from pentad.samples.batch import Batch
from pentad.trainers.protocol import Published, Trained
from pentad.weights.proof import check_checksums
from pentad.weights.transport.protocol import Transport

_PHASE = "weight synchronisation"
# Who sends or receives learns at once that the channel is closed.
_GRACE_S = 60.0


class PublishedPolicy(RoleTrainer):
    """The model that is trained and generates; satisfies `pentad.loops.roles.Policy`.

    Where adapters are trained, engines that take them (`EngineFeatures.adapters`) get all weights at the first
    publication, and the adapters alone after that; others get the model with the adapters merged into it.

    Args:
        trainers: all models.
        engines: what it is published to.
        transport: how its weights travel.
        restart: requests that run when new weights come are aborted, and made again by whoever made them.
    """

    def __init__(self, trainers: Trainers, engines: Engines, transport: Transport, *, restart: bool = False) -> None:
        super().__init__(trainers, "policy")
        self._what: Published = "all"
        if trainers.lora is not None and not engines.features.adapters:
            self._what = "merged"
        # Engines that had been replaced at the last publication.
        self._replaced = 0
        self._engines = engines
        self._transport = transport
        self._restart = restart
        self._version: int | None = None
        # Set while the trainer's weights are those of `_version`.
        self._current = asyncio.Event()
        engines.revival.publish_again = self._publish_again
        engines.revival.published = self._current

    async def train(self, minibatch: Batch, loss: Loss, temperature: float, progress: Progress) -> Trained:
        """One optimizer step. No engine is replaced meanwhile, as it could not be given weights."""
        async with self._engines.revival.lock:
            self._current.clear()
            return await super().train(minibatch, loss, temperature, progress)

    async def publish(self, version: int) -> None:
        """Bring the trainer's weights to the engines and prove that they arrived; engines are awake afterwards.

        Args:
            version: of the weights; the number of optimizer steps behind them.

        Raises:
            SyncError: an engine holds something else than was sent. The message names the tensors.
            DeadlineError: it took too long. The message names the processes, and the tensor that each was at.
            RunFailedError: a process failed.
        """
        async with self._engines.revival.lock:
            await self._publish_to_all(version)

    async def _publish_to_all(self, version: int) -> None:
        calls: list[Call] = []
        while True:
            try:
                await self._publish(version, calls)
                break
            except Exception as error:
                # An engine that has died has another in its place now; all of them take the weights once more. Of
                # several that are late it is not known which one the others wait for.
                if isinstance(error, DeadlineError) or not await self._engines.revival.revive(error):
                    raise
                self._send_all()
                await self._ranks.gang.processes.settle(calls, _GRACE_S)
        self._version = version
        self._current.set()

    async def _publish_again(self) -> None:
        if self._version is None:
            raise RuntimeError("an engine generated before the first publication")
        self._send_all()
        await self._publish_to_all(self._version)

    def _send_all(self) -> None:
        """A new engine has no base for adapters yet."""
        if self._what == "adapters":
            self._what = "all"

    async def _publish(self, version: int, calls: list[Call]) -> None:
        """Publish once; `calls` then has what may still be under way if that failed."""
        calls.clear()
        # What is published again is no news to the requests that run.
        await self._engines.pause(abort=self._restart and version != self._version)
        await self._engines.wake()
        gang = self._ranks.gang
        if (replaced := sum(self._engines.revival.replaced)) != self._replaced:
            self._send_all()  # to those that were lost since
        channel = self._transport.open(version)
        try:
            # Engines first: they receive from the first bucket on.
            calls += [self._engines.start_loading(channel, version), self.start_sending(channel, self._what)]
            held, sent = await gang.processes.wait(calls, _PHASE, gang.deadline_s)
        finally:
            channel.close("the publication has ended")
        sums: dict[str, int] = {}
        for part in sent:
            sums |= part
        for engine, found in zip(self._engines.names, held, strict=True):
            check_checksums(sums, found, engine)
        if self._trainers.lora is not None and self._what == "all":
            self._what = "adapters"
        self._replaced = replaced
        await self._engines.resume()
