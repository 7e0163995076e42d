"""What every rollout engine can do, and the requests that it is given.

Invariant: the verbs say nothing of how an engine works; the driver and the weight sync know this file only.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from torch import Tensor

from pentad.samples.batch import Completion
from pentad.samples.request import GenerateRequest

Progress = Callable[[int, int], None]
"""Called with (completions finished, completions asked for) whenever the first number has grown."""


class RolloutEngine(Protocol):
    """One generation engine. It refuses to generate until a whole set of weights has arrived."""

    @property
    def version(self) -> int:
        """Version of the weights in use; -1 while there are none, or while they are incomplete."""
        ...

    def generate(self, requests: Sequence[GenerateRequest], progress: Progress | None = None) -> list[list[Completion]]:
        """Complete every request: `result[i]` holds the `n` completions of `requests[i]`, in sample order."""
        ...

    def logprobs(self, sequences: Sequence[Tensor], temperature: float = 1.0) -> list[Tensor]:
        """Score given tokens.

        Args:
            sequences: int64 `[L]` each, L >= 1.
            temperature: divides the logits; positive.

        Returns:
            float32 `[L]` each: entry `i` is `log p(token i | earlier tokens)`, and entry 0 is 0.
        """
        ...

    def expected_weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that `load_weights` needs, by their Hugging Face checkpoint names."""
        ...

    def load_weights(self, chunks: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take a whole set of weights, each expected tensor exactly once, in any order.

        Raises:
            WeightMismatchError: a tensor is missing, unknown, repeated or misshapen.
        """
        ...

    def checksums(self) -> dict[str, int]:
        """Checksum of every weight as this engine holds it, by `pentad.weights.table.checksum`."""
        ...

    def sleep(self) -> None:
        """Release the accelerator's memory until `wake`."""
        ...

    def wake(self) -> None:
        """Take the memory back; the weights are those held before `sleep`."""
        ...

    def close(self) -> None:
        """Release everything. The engine cannot be used afterwards."""
        ...
