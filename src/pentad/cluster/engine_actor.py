"""The process of one rollout engine.

Invariant: the engine generates only from a whole set of weights whose checksums are the trainer's.
"""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from torch import Tensor

from pentad.cluster.process import GROUPS, Process, check_visible
from pentad.config.schema.rollout import RolloutSettings
from pentad.platform.device import find_platform
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.proof import check_checksums
from pentad.weights.source import load_tokenizer

if TYPE_CHECKING:
    from pentad.engines.hf.engine import EmbeddedEngine


@ray.remote(concurrency_groups=GROUPS)
class EngineActor(Process):
    """One engine on one device. Progress is in completions."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self._built: EmbeddedEngine | None = None

    def build(self, directory: Path, tokenizer: str, settings: RolloutSettings, seed: int, threads: int) -> torch.dtype:
        """Make the engine, without weights; returns its dtype.

        Args:
            directory: of the model, absolute.
            tokenizer: an absolute directory or a hub id.

        Raises:
            UserError: this machine does not see a directory.
        """
        check_visible("model.path", directory)
        if Path(tokenizer).is_absolute():
            check_visible("model.tokenizer", Path(tokenizer))
        # Imported here, because the driver, which imports this file, has no use for it.
        from pentad.engines.hf.engine import EmbeddedEngine

        platform = find_platform()
        if not platform.is_cuda:
            torch.set_num_threads(threads)
        dtype = platform.dtype(settings.dtype)
        self._built = EmbeddedEngine(
            directory,
            dtype=dtype,
            device=platform.device,
            batch_size=settings.batch_size,
            seed=seed,
            tokenizer=load_tokenizer(tokenizer),
        )
        return dtype

    async def load_weights(self, refs: Sequence[Any], version: int) -> None:
        """Take all weights, one bucket at a time, and check that they are the trainer's.

        Raises:
            WeightMismatchError, SyncError: a tensor is missing, unexpected or changed.
        """
        channel = _Buckets(refs)
        held = await self._engine.load_weights(channel, version)
        check_checksums(channel.sent, held, f"engine {self.rank}")

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request."""

        async def complete(request: GenerateRequest) -> Completion:
            completion = await self._engine.generate(request)
            self._done += 1
            return completion

        completions = await asyncio.gather(*map(complete, requests))
        self._done = 0
        return completions

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """Score given tokens: float32 `[L]` for each sequence."""
        return await self._engine.logprobs(sequences, temperature)

    async def sleep(self) -> None:
        """Release the accelerator's memory."""
        await self._engine.sleep()

    async def wake(self) -> None:
        """Take it back."""
        await self._engine.wake()

    @property
    def _engine(self) -> "EmbeddedEngine":
        if self._built is None:
            raise RuntimeError("the engine was not built")
        return self._built


class _Buckets:
    """A channel whose sender has put everything into the object store."""

    def __init__(self, refs: Sequence[Any]) -> None:
        self._refs = refs
        self.sent: dict[str, int] = {}

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors; `sent` then has their checksums."""
        for ref in self._refs:
            bucket = ray.get(ref)
            self.sent.update((entry.name, entry.checksum) for entry in bucket.entries)
            yield from bucket.tensors()
