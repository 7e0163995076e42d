"""What every rollout engine can do, and the requests that it is given.

Invariant: the verbs say nothing of how an engine works; the driver and the weight sync know this file only.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pentad.data.batch import Completion

Progress = Callable[[int, int], None]
"""Called with (completions finished, completions asked for) whenever the first number has grown."""


class WeightMismatchError(RuntimeError):
    """The weights that arrived are not the weights that the model needs. The message names the tensors."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample the completions of one request.

    Args:
        temperature: divides the logits; 0 is greedy, and reports log-probs of the distribution at temperature 1.
        top_p: sample from the smallest set of likeliest tokens whose probability reaches this; 1 keeps all.
            Reported log-probs are always those of the whole distribution.
        max_tokens: longest response.
        stop: strings that end a response; it keeps the tokens up to the one that completes the string.
        stop_token_ids: tokens that end a response, besides the model's own; they stay in the response.
        n: completions of the prompt.
        seed: with the request's id and the sample's number it determines the random numbers of a completion.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name, valid in (
            ("temperature", 0 <= self.temperature < float("inf")),
            ("top_p", 0 < self.top_p <= 1),
            ("max_tokens", self.max_tokens >= 1),
            ("stop", all(self.stop)),
            ("n", self.n >= 1),
            ("seed", self.seed >= 0),
        ):
            if not valid:
                raise ValueError(f"SamplingParams.{name} is out of range: {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class GenerateRequest:
    """One prompt to be completed.

    Args:
        prompt_tokens: int64 `[P]`, P >= 1.
        request_id: seeds this request's random numbers. The same id, seed and weights give the same completions,
            so put the step into it where a prompt is sampled at several steps.
        params: how to sample.

    Raises:
        ValueError: the prompt is empty or is not int64 `[P]`.
    """

    prompt_tokens: Tensor
    request_id: str
    params: SamplingParams = SamplingParams()

    def __post_init__(self) -> None:
        prompt = self.prompt_tokens
        if prompt.dim() != 1 or prompt.dtype != torch.int64 or len(prompt) == 0:
            raise ValueError(
                f"request {self.request_id}: prompt_tokens must be int64 [P] with P >= 1, "
                f"not {prompt.dtype} {list(prompt.shape)}"
            )


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
        """Checksum of every weight as this engine holds it, by `pentad.rollout.weights.checksum`."""
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
