"""The answer of an engine to one request.

Invariant: every token carries the version of the weights that sampled it, so weights may change while a request runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pentad.samples.tensors import PicklesAsNumpy, check_tensor

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, eq=False)
class Completion(PicklesAsNumpy):
    """One sampled response.

    Args:
        response_tokens: int64 `[R]`, with the end-of-turn token where one was sampled. R >= 1, but for an abort.
        response_logprobs: float32 `[R]`, natural log-probs of the temperature-scaled distribution, before top-p.
        versions: int32 `[R]`, the version of the weights that sampled each token.
        finish_reason: `stop` when the policy ended it, `length` when the token limit did, `abort` when the engine was
            paused with abort and the request returned what it had.
        extras: named tensors, such as routed experts `[.., layers, k]`.

    Raises:
        ValueError: a tensor has another shape or dtype.
    """

    response_tokens: Tensor
    response_logprobs: Tensor
    versions: Tensor
    finish_reason: FinishReason
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tensor("response_tokens", self.response_tokens, torch.int64)
        check_tensor("response_logprobs", self.response_logprobs, torch.float32, len(self.response_tokens))
        check_tensor("versions", self.versions, torch.int32, len(self.response_tokens))
        if self.finish_reason not in ("stop", "length", "abort"):
            raise ValueError(f"finish_reason must be 'stop', 'length' or 'abort', not {self.finish_reason!r}")
        if len(self.response_tokens) == 0 and self.finish_reason != "abort":
            raise ValueError("a completion needs at least one token, unless it was aborted")
