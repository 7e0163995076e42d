"""The process of one rollout engine.

Invariant: the engine generates only from a whole set of weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray
import torch
from torch import Tensor

from pentad.cluster.process import GROUPS, Process, check_visible, thread_share
from pentad.config.schema.rollout import RolloutSettings
from pentad.platform.device import find_platform
from pentad.samples.batch import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.source import load_tokenizer
from pentad.weights.transport.protocol import WeightChannel

if TYPE_CHECKING:
    from pentad.engines.hf.engine import EmbeddedEngine


@ray.remote(concurrency_groups=GROUPS)
class EngineActor(Process):
    """One engine on one device. Progress is in completions."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self._built: EmbeddedEngine | None = None

    def build(
        self, directory: Path, tokenizer: str, settings: RolloutSettings, seed: int, neighbours: int
    ) -> torch.dtype:
        """Make the engine, without weights; returns its dtype.

        Args:
            directory: of the model, absolute.
            tokenizer: an absolute directory or a hub id.
            neighbours: engines on this machine, this one among them.

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
            torch.set_num_threads(thread_share(neighbours))
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

    def load_weights(self, channel: WeightChannel, version: int) -> Mapping[str, int]:
        """Take all weights; returns the checksum of each tensor as the engine holds it, by Hugging Face name.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen.
        """
        self._engine.load_weights(self._noting("loading", channel.receive()), version)
        return self._engine.checksums()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[list[Completion]]:
        """Complete every request."""
        completions = self._engine.generate(requests, self._advance)
        self._done = 0
        return completions

    def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[Tensor]:
        """Score given tokens: float32 `[L]` for each sequence."""
        return self._engine.logprobs(sequences, temperature)

    def sleep(self) -> None:
        """Release the accelerator's memory."""
        self._engine.sleep()

    def wake(self) -> None:
        """Take it back."""
        self._engine.wake()

    @property
    def _engine(self) -> "EmbeddedEngine":
        if self._built is None:
            raise RuntimeError("the engine was not built")
        return self._built

    def _advance(self, done: int, total: int) -> None:
        self._done = done
