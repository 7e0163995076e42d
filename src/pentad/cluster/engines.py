"""The rollout engines as the driver sees them: one object, however many engines.

Invariant: completions come back in the order of the requests, whichever engine made them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pentad.cluster.cluster import Cluster
from pentad.cluster.engine_actor import EngineActor
from pentad.cluster.gang import Progress
from pentad.cluster.processes import Call
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.samples.batch import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.transport.protocol import WeightChannel


class Engines:
    """All engines of a run.

    Args:
        settings: of the run.
        directory: the model as a Hugging Face directory.
        tokenizer: an absolute directory or a hub id.
        cluster: where they are placed.
    """

    def __init__(self, settings: RunSettings, directory: Path, tokenizer: str, cluster: Cluster) -> None:
        component = cluster.allocation.rollout
        if component is None:
            raise UserError(f"allocation {cluster.allocation} has no rollout engines")
        self._gang = cluster.spawn(EngineActor, "rollout engine", component, settings.trainer.deadline_s)
        self._sleeps = settings.rollout.sleep
        self._arguments = (directory, tokenizer, settings.rollout, settings.experiment.seed)
        self.dtype = torch.float32

    async def build(self) -> None:
        """Have the engines made, without weights, once their processes run."""
        arguments = [(*self._arguments, self._gang.neighbours(rank)) for rank in range(len(self._gang))]
        self.dtype = (await self._gang.call_each("build", arguments, "start-up"))[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What each engine is called in errors."""
        return self._gang.names

    def start_loading(self, channel: WeightChannel, version: int) -> Call:
        """Have every engine take all weights; each answers with the checksums that it then holds."""
        return self._gang.start("load_weights", channel, version)

    async def generate(self, requests: Sequence[GenerateRequest], progress: Progress) -> list[list[Completion]]:
        """Complete all requests."""
        engines = len(self._gang)
        # Dealt out in turn, so that groups of long prompts do not meet on one engine.
        shares = [(list(requests[rank::engines]),) for rank in range(engines)]
        answers = await self._gang.call_each("generate", shares, "rollout", progress)
        results: list[list[Completion]] = [[] for _ in requests]
        for rank, answer in enumerate(answers):
            results[rank::engines] = answer
        return results

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[list[Tensor]]:
        """What each engine thinks of given tokens: float32 `[L]` for each sequence."""
        return await self._gang.call("logprobs", sequences, temperature, phase="probing the engines")

    async def sleep(self) -> None:
        """Release the engines' memory for the trainer, where `rollout.sleep` asks for it."""
        if self._sleeps:
            await self._gang.call("sleep", phase="releasing the engines' memory")

    async def wake(self) -> None:
        """Take the memory back."""
        if self._sleeps:
            await self._gang.call("wake", phase="waking the engines")
