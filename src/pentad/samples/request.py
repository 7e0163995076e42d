"""What an engine is asked for.

Invariant: one request is one completion. A group of samples is several requests; who sends them keeps the group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How to sample a completion.

    Args:
        temperature: divides the logits; 0 is greedy, and reports log-probs of the distribution at temperature 1.
        top_p: sample from the smallest set of likeliest tokens whose probability reaches this; 1 keeps all.
            Reported log-probs are always those of the whole distribution.
        max_tokens: longest response.
        stop: strings that end a response; it keeps the tokens up to the one that completes the string.
        stop_token_ids: tokens that end a response, besides the model's own; they stay in the response.
        seed: with the request's id and the sample's number it determines the random numbers of a completion.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name, valid in (
            ("temperature", 0 <= self.temperature < float("inf")),
            ("top_p", 0 < self.top_p <= 1),
            ("max_tokens", self.max_tokens >= 1),
            ("stop", all(self.stop)),
            ("seed", self.seed >= 0),
        ):
            if not valid:
                raise ValueError(f"SamplingParams.{name} is out of range: {getattr(self, name)!r}")


@dataclass(frozen=True, eq=False)
class GenerateRequest:
    """One prompt, to be completed once.

    Example: eight samples of a prompt are eight requests that differ in `sample` only::

        requests = [GenerateRequest(prompt, "step 3 prompt 5", params, sample) for sample in range(8)]

    Args:
        prompt_tokens: int64 `[P]`, P >= 1.
        request_id: seeds the random numbers. The same id, sample, seed and weights give the same completion, so put
            the step into it where a prompt is sampled at several steps.
        params: how to sample.
        sample: which of the samples of the prompt this is.

    Raises:
        ValueError: the prompt is empty or is not int64 `[P]`, or the sample is negative.
    """

    prompt_tokens: Tensor
    request_id: str
    params: SamplingParams = SamplingParams()
    sample: int = 0

    def __post_init__(self) -> None:
        prompt = self.prompt_tokens
        if prompt.dim() != 1 or prompt.dtype != torch.int64 or len(prompt) == 0:
            raise ValueError(
                f"request {self.request_id}: prompt_tokens must be int64 [P] with P >= 1, "
                f"not {prompt.dtype} {list(prompt.shape)}"
            )
        if self.sample < 0:
            raise ValueError(f"request {self.request_id}: sample must not be negative: {self.sample}")
