"""A request on its way to its completion.

Invariant: tokens that were sampled are never lost and never sampled again: whatever takes a job out of its row, it goes
on after the tokens that it has. Each token keeps the version of the weights that sampled it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pentad.samples.completion import Completion, FinishReason
from pentad.samples.request import GenerateRequest, SamplingParams


@dataclass(eq=False)
class Job:
    """One request, and what earlier rows sampled for it.

    Attributes:
        request: what is asked for.
        stop_ids: all tokens that end the response.
        tokens: int64 `[N]`, sampled in rows that the job has left.
        logprobs: float32 `[N]`, of `tokens`.
        versions: int32 `[N]`, of the weights that sampled them.
        count: tokens that the host knows to be sampled in the row that the job is in.
        cancelled: nobody waits for it any more.
    """

    request: GenerateRequest
    stop_ids: tuple[int, ...]
    tokens: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    logprobs: Tensor = field(default_factory=lambda: torch.zeros(0))
    versions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))
    count: int = 0
    cancelled: bool = False

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def prefix(self) -> Tensor:
        """int64 `[P + N]`: the prompt, and the tokens of earlier rows."""
        return torch.cat([self.request.prompt_tokens, self.tokens])

    @property
    def prefix_length(self) -> int:
        return len(self.request.prompt_tokens) + len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens of prompt and response at most."""
        return len(self.request.prompt_tokens) + self.params.max_tokens

    @property
    def limit(self) -> int:
        """Tokens that a row may still sample."""
        return self.params.max_tokens - len(self.tokens)

    def leave_row(self, tokens: Tensor, logprobs: Tensor, version: int) -> None:
        """Take over what the row sampled, `[R]` each."""
        self.tokens = torch.cat([self.tokens, tokens])
        self.logprobs = torch.cat([self.logprobs, logprobs])
        self.versions = torch.cat([self.versions, torch.full((len(tokens),), version, dtype=torch.int32)])
        self.count = 0

    def completion(self, finish_reason: FinishReason) -> Completion:
        """What it has, once it has left its row."""
        return Completion(self.tokens, self.logprobs, self.versions, finish_reason)
