"""What is trained on: token sequences of which the policy sampled some tokens.

Invariant: a trajectory says of every token whether the policy sampled it, with which log-prob and under which version
of the weights. A prompt, a tool's answer and a user's turn are tokens that were not sampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pentad.samples.completion import Completion
from pentad.samples.tensors import PicklesAsNumpy, check_tensor

Status = Literal["done", "truncated", "failed"]

NOT_SAMPLED = -1
"""The version of a token that the policy did not sample."""


@dataclass(frozen=True, eq=False)
class Trajectory(PicklesAsNumpy):
    """One token sequence to train on; an episode gives one or more.

    Args:
        tokens: int64 `[L]`, L >= 2.
        sampled: bool `[L]`, True where the policy sampled the token; it becomes the loss mask. False at the first.
        logprobs: float32 `[L]`, the engine's log-probs of sampled tokens, 0 elsewhere.
        versions: int32 `[L]`, version of the weights that sampled each token, -1 where it was not sampled.
        group: episodes of one prompt share it.
        episode: trajectories of one episode share it; unique within a run.
        reward: of the episode.
        status: `truncated` where the token limit ended it; `failed` where no reward could be computed.
        extras: named tensors whose first dimension is L, such as routed experts.

    Raises:
        ValueError: the parts do not agree.
    """

    tokens: Tensor
    sampled: Tensor
    logprobs: Tensor
    versions: Tensor
    group: int
    episode: int
    reward: float = 0.0
    status: Status = "done"
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tensor("tokens", self.tokens, torch.int64)
        length = len(self.tokens)
        if length < 2:
            raise ValueError(f"a trajectory needs at least 2 tokens, not {length}")
        check_tensor("sampled", self.sampled, torch.bool, length)
        check_tensor("logprobs", self.logprobs, torch.float32, length)
        check_tensor("versions", self.versions, torch.int32, length)
        if bool(self.sampled[0]):
            raise ValueError("the first token of a trajectory has no log-prob; it cannot be sampled")
        if not torch.equal(self.sampled, self.versions != NOT_SAMPLED):
            raise ValueError("versions must be -1 exactly where a token was not sampled")
        for name, value in self.extras.items():
            if len(value) != length:
                raise ValueError(f"extras[{name!r}] has {len(value)} entries for {length} tokens")

    @property
    def oldest_version(self) -> int:
        """The oldest weights that sampled a token of it; -1 where none was sampled."""
        versions = self.versions[self.sampled]
        return int(versions.min()) if len(versions) else NOT_SAMPLED

    @staticmethod
    def of_completion(prompt: Tensor, completion: Completion, *, group: int, episode: int) -> Trajectory:
        """One prompt, int64 `[P]`, and one response to it, without a reward yet.

        Raises:
            ValueError: the completion was aborted: it is a part of a response.
        """
        if completion.finish_reason == "abort":
            raise ValueError("an aborted completion is a part of a response and is not trained on")
        nothing = len(prompt)
        extras = {}
        for name, value in completion.extras.items():
            padding = value.new_zeros(nothing + len(completion.response_tokens) - len(value), *value.shape[1:])
            extras[name] = torch.cat([padding, value])
        return Trajectory(
            tokens=torch.cat([prompt, completion.response_tokens]),
            sampled=torch.cat(
                [
                    torch.zeros(nothing, dtype=torch.bool),
                    torch.ones(len(completion.response_tokens), dtype=torch.bool),
                ]
            ),
            logprobs=torch.cat([torch.zeros(nothing), completion.response_logprobs]),
            versions=torch.cat([torch.full((nothing,), NOT_SAMPLED, dtype=torch.int32), completion.versions]),
            group=group,
            episode=episode,
            status="truncated" if completion.finish_reason == "length" else "done",
            extras=extras,
        )
