"""The rollout engines as the driver sees them: one object, however many engines.

Invariant: each request is answered once, by one engine, however many were lost before. Where no request is in flight,
the assignment of the requests of one tick of the event loop depends on these requests and their order alone.
"""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pentad.cluster.cluster import Cluster
from pentad.cluster.engine_actor import EngineActor
from pentad.cluster.processes import Call
from pentad.cluster.replica import Order, Replica
from pentad.cluster.revival import Revival
from pentad.config.schema.run import RunSettings
from pentad.engines.protocol import EngineFeatures
from pentad.errors import UserError
from pentad.record.phases import ASLEEP
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.constants import ModelConstants
from pentad.weights.transport.protocol import WeightChannel

# Of the deadline of a call, what an engine has for it.
_ENGINE_SHARE = 0.8


class Engines:
    """All engines of a run.

    Requests that are made within one tick of the event loop are sent together, one call to each engine.

    Args:
        settings: of the run.
        directory: the model as a Hugging Face directory.
        tokenizer: an absolute directory or a hub id.
        longest: most tokens of a sequence.
        cluster: where they are placed.

    Attributes:
        dtype: that engines take weights in; known once they are built.
        features: what every engine can do; known once they are built.
        revival: replaces engines that are lost.
    """

    def __init__(self, settings: RunSettings, directory: Path, tokenizer: str, longest: int, cluster: Cluster) -> None:
        component = cluster.allocation.rollout
        if component is None:
            raise UserError(f"allocation {cluster.allocation} has no rollout engines")
        self._gang = cluster.spawn(
            EngineActor,
            "rollout engine",
            component,
            settings.trainer.deadline_s,
            devices_each=component.layout.tensor,
            replaceable=True,
        )
        self._sleeps = settings.rollout.sleep
        self._arguments = (
            component.backend,
            directory,
            tokenizer,
            settings.rollout,
            settings.experiment.seed,
            Path.cwd(),
            longest,
            cluster.allocation.colocated,
            # An engine that hangs says so itself, before it is late: it can be replaced then.
            _ENGINE_SHARE * settings.trainer.deadline_s,
            settings.model.adapters,
            component.layout.tensor,
        )
        self.revival = Revival(self._gang, self._arguments_of, settings.rollout.max_engine_restarts)
        late, revival = settings.rollout.deadline_s, self.revival
        self._replicas = [
            Replica(self._gang, rank, late, revival.recover, lambda: sum(revival.replaced))
            for rank in range(len(self._gang))
        ]
        revival.replicas = self._replicas
        # Further GPUs of the engines, by their numbers on the engines' machines.
        self._gpus: list[str] = []
        self._arrived: list[Order] = []
        # Spans of engines that have released their memory.
        self._asleep: list[int] = []
        self.dtype = torch.float32
        self.features = EngineFeatures(frozenset())

    async def build(self) -> None:
        """Have the engines made, without weights, once their processes run."""
        if (reserved := self._gang.reserved) is not None:
            self._gpus = await reserved.call("gpu", phase="start-up")
        arguments = [self._arguments_of(rank) for rank in range(len(self._gang))]
        self.dtype, self.features = (await self._gang.call_each("build", arguments, "start-up"))[0]

    def _arguments_of(self, rank: int) -> tuple[Any, ...]:
        """Of `EngineActor.build`, for the engine of a rank."""
        each = len(self._gpus) // len(self._gang)
        return (*self._arguments, self._gpus[rank * each : (rank + 1) * each], self._gang.neighbours(rank))

    async def generate(self, request: GenerateRequest) -> Completion:
        """Sample one response, on the engine with the least load in flight; samples of a prompt go to one engine.

        Raises:
            UserError: the engine refuses the request.
            RunFailedError: the engine, or another process of the run, failed.
        """
        order = Order(request, asyncio.get_running_loop().create_future())
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._deal)
        self._arrived.append(order)
        try:
            return await order.answer
        finally:
            if order.replica is not None:
                order.replica.settle(order)

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[list[Tensor]]:
        """What each engine gives: float32 `[L]` for each sequence."""
        phase = "probing the engines"
        return await self.revival.asked(lambda: self._gang.call("logprobs", sequences, temperature, phase=phase))

    async def constants(self, positions: Sequence[int]) -> list[ModelConstants | None]:
        """What each engine computes with beside weights; None where it cannot tell."""
        phase = "probing the engines"
        return await self.revival.asked(lambda: self._gang.call("constants", list(positions), phase=phase))

    async def pause(self, *, abort: bool) -> None:
        """Stop sampling on all engines; see `Engine.pause`."""
        for replica in self._replicas:
            replica.generating.pause(True)
        await self._gang.call("pause", abort, phase="pausing the engines")

    async def resume(self) -> None:
        """Sample again."""
        await self._gang.call("resume", phase="resuming the engines")
        for replica in self._replicas:
            replica.generating.pause(False)

    @property
    def names(self) -> tuple[str, ...]:
        """What each engine is called in errors."""
        return self._gang.names

    def start_loading(self, channel: WeightChannel, version: int) -> Call:
        """Have every engine take all weights; each answers with the checksums that it then holds."""
        return self._gang.start("load_weights", channel, version)

    async def sleep(self) -> None:
        """Release the engines' memory for the trainer, where `rollout.sleep` asks for it."""
        if self._sleeps:
            await self.revival.asked(lambda: self._gang.call("sleep", phase="releasing the engines' memory"))
            self._asleep = [self._gang.timeline.begin(name, ASLEEP) for name in self._gang.names]

    async def wake(self) -> None:
        """Take the memory back. The engines then need weights."""
        if self._sleeps:
            for handle in self._asleep:
                self._gang.timeline.end(handle)
            self._asleep = []
            await self._gang.call("wake", phase="waking the engines")

    def _deal(self) -> None:
        """Send what has arrived in this tick."""
        arrived, self._arrived = self._arrived, []
        waited_for = [order for order in arrived if not order.answer.done()]
        for _, group in groupby(waited_for, key=lambda order: order.request.request_id):
            # The first of several; one that was lost is only waited for where there is no other.
            replica = min(self._replicas, key=lambda replica: (replica.failed, replica.load))
            for order in group:
                replica.take(order)
        for replica in self._replicas:
            replica.send()
