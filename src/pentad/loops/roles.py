"""What a loop needs of the processes of a run.

Invariant: loops know these protocols and no process. `pentad.cluster` satisfies them with Ray actors; a test may with
plain objects.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from pentad.algorithms.protocol import Loss
from pentad.samples.batch import Batch
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.trainers.protocol import Trained
from pentad.weights.constants import ModelConstants

Progress = Callable[[int], None]
"""Called with how much of a phase is done, in microbatches or completions."""


class Trainer(Protocol):
    """One model on all its ranks."""

    async def logprobs(self, batch: Batch, temperature: float, progress: Progress) -> Tensor:
        """Log-probs of the tokens in the loss mask, float32 `[T]`, 0 elsewhere."""
        ...

    async def values(self, batch: Batch, progress: Progress) -> Tensor:
        """A critic's values of the tokens in the loss mask, float32 `[T]`, 0 elsewhere."""
        ...

    async def train(self, minibatch: Batch, loss: Loss, temperature: float, progress: Progress) -> Trained:
        """One optimizer step."""
        ...


class Policy(Trainer, Protocol):
    """The model that is trained and generates."""

    async def constants(self, positions: Sequence[int]) -> ModelConstants:
        """What the whole model computes with beside weights.

        Args:
            positions: for the rotary angles.
        """
        ...

    async def publish(self, version: int) -> None:
        """Bring the trainer's weights to the engines and prove that they arrived; engines are awake afterwards."""
        ...


class Engines(Protocol):
    """All rollout engines."""

    async def generate(self, request: GenerateRequest) -> Completion:
        """Sample one response, on the engine with the least load."""
        ...

    async def logprobs(self, sequences: Sequence[Tensor], temperature: float) -> list[list[Tensor]]:
        """What each engine gives: float32 `[L]` for each sequence."""
        ...

    async def constants(self, positions: Sequence[int]) -> list[ModelConstants | None]:
        """What each engine computes with beside weights; None where it cannot tell."""
        ...

    async def pause(self, *, abort: bool) -> None: ...

    async def resume(self) -> None: ...

    async def sleep(self) -> None:
        """Release the engines' memory for the trainer, where they share devices and `rollout.sleep` asks for it."""
        ...
