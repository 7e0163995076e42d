"""The jagged batch that carries sequences through a step.

Invariant: a `Batch` is consistent from the moment that it exists. Its flat tensors agree in length, its
`cu_seqlens` rise strictly from 0 to `T` (no sequence is empty), nothing is trained on at the first token of a
sequence (it has no log-prob), and every operation returns a new batch and leaves the old one as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pentad.platform.device import to_device
from pentad.samples.tensors import PicklesAsNumpy, check_tensor
from pentad.samples.trajectory import Trajectory

_PER_SEQUENCE_DTYPES = (torch.float32, torch.int64, torch.bool)


@dataclass(frozen=True, eq=False)
class Batch(PicklesAsNumpy):
    """`S` sequences of `T` tokens in all, flat and unpadded.

    A per-token value sits at the token that it is about: `logprobs[i] = log p(tokens[i] | earlier tokens)`, and 0
    at the first token of a sequence.

    Args:
        tokens: int64 `[T]`, prompt then response of each sequence.
        cu_seqlens: int32 `[S + 1]`; sequence `s` is `tokens[cu_seqlens[s]:cu_seqlens[s + 1]]`.
        loss_mask: bool `[T]`, True where the token is trained on.
        sample_ids: int64 `[S]`, unique within a step.
        per_token: named float32 `[T]` tensors.
        per_sequence: named float32, int64 or bool `[S]` tensors.

    Raises:
        ValueError: the parts do not agree.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    loss_mask: Tensor
    sample_ids: Tensor
    per_token: Mapping[str, Tensor] = field(default_factory=dict)
    per_sequence: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tensor("tokens", self.tokens, torch.int64)
        check_tensor("cu_seqlens", self.cu_seqlens, torch.int32)
        if len(self.cu_seqlens) == 0:
            raise ValueError("cu_seqlens must hold at least its leading 0")
        check_tensor("loss_mask", self.loss_mask, torch.bool, self.num_tokens)
        check_tensor("sample_ids", self.sample_ids, torch.int64, self.num_sequences)
        for name, value in self.per_token.items():
            check_tensor(f"per_token[{name!r}]", value, torch.float32, self.num_tokens)
        for name, value in self.per_sequence.items():
            check_tensor(f"per_sequence[{name!r}]", value, _PER_SEQUENCE_DTYPES, self.num_sequences)
        if self.cu_seqlens.device.type == "cpu":  # elsewhere, looking at values would stall the device
            self._check_values()

    def _check_values(self) -> None:
        if self.cu_seqlens[0] != 0 or self.cu_seqlens[-1] != self.num_tokens:
            raise ValueError(
                f"cu_seqlens must run from 0 to {self.num_tokens} (the number of tokens), "
                f"not from {int(self.cu_seqlens[0])} to {int(self.cu_seqlens[-1])}"
            )
        lengths = self.cu_seqlens.diff()
        if bool((lengths <= 0).any()):
            raise ValueError(
                f"cu_seqlens must rise strictly; it does not at sequence {int((lengths <= 0).nonzero()[0])}"
            )
        masked_starts = self.loss_mask[self.cu_seqlens[:-1].long()]
        if bool(masked_starts.any()):
            raise ValueError(
                f"loss_mask is True at the first token of sequence {int(masked_starts.nonzero()[0])}, "
                "which has no log-prob; every sequence needs a prompt token"
            )

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.cu_seqlens) - 1

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, S of them."""
        return self.cu_seqlens.diff().tolist()

    @property
    def device(self) -> torch.device:
        """Where all tensors of the batch are."""
        return self.tokens.device

    def position_ids(self) -> Tensor:
        """int64 `[T]`: 0, 1, 2, ... within each sequence."""
        starts, lengths = self.cu_seqlens[:-1].long(), self.cu_seqlens.diff().long()
        offsets = torch.repeat_interleave(starts, lengths, output_size=self.num_tokens)
        return torch.arange(self.num_tokens, device=self.device) - offsets

    def sequence_ids(self) -> Tensor:
        """int64 `[T]`: the index (0 to S - 1) of the sequence that each token belongs to."""
        indices = torch.arange(self.num_sequences, device=self.device)
        return torch.repeat_interleave(indices, self.cu_seqlens.diff().long(), output_size=self.num_tokens)

    def select(self, indices: Sequence[int] | Tensor) -> Batch:
        """The sequences at `indices`, in that order; an index may be repeated, none may be negative.

        Raises:
            IndexError: an index is outside 0 to S - 1.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        outside = chosen[(chosen < 0) | (chosen >= self.num_sequences)]
        if len(outside) > 0:
            raise IndexError(f"sequence {int(outside[0])} is not among the {self.num_sequences} of this batch")
        starts, lengths = self.cu_seqlens[:-1].long()[chosen], self.cu_seqlens.diff().long()[chosen]
        cu_seqlens = _cu_seqlens(lengths)
        # Token j of the result lies as far into its old sequence as into its new one.
        shift = torch.repeat_interleave(starts - cu_seqlens[:-1], lengths)
        source = torch.arange(len(shift), device=self.device) + shift
        return Batch(
            tokens=self.tokens[source],
            cu_seqlens=cu_seqlens,
            loss_mask=self.loss_mask[source],
            sample_ids=self.sample_ids[chosen],
            per_token={name: value[source] for name, value in self.per_token.items()},
            per_sequence={name: value[chosen] for name, value in self.per_sequence.items()},
        )

    def with_per_token(self, name: str, value: Tensor) -> Batch:
        """This batch with `per_token[name]` added or replaced; `value` is float32 `[T]`."""
        return replace(self, per_token={**self.per_token, name: value})

    def with_per_sequence(self, name: str, value: Tensor) -> Batch:
        """This batch with `per_sequence[name]` added or replaced; `value` is `[S]`."""
        return replace(self, per_sequence={**self.per_sequence, name: value})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """This batch with all tensors on `device`; `non_blocking` copies to a GPU behind the work that it has."""

        def move(tensor: Tensor) -> Tensor:
            return to_device(tensor, torch.device(device)) if non_blocking else tensor.to(device)

        return Batch(
            tokens=move(self.tokens),
            cu_seqlens=move(self.cu_seqlens),
            loss_mask=move(self.loss_mask),
            sample_ids=move(self.sample_ids),
            per_token={name: move(value) for name, value in self.per_token.items()},
            per_sequence={name: move(value) for name, value in self.per_sequence.items()},
        )

    @staticmethod
    def from_trajectories(trajectories: Sequence[Trajectory]) -> Batch:
        """The training batch of `S` trajectories; a failed one is masked out.

        Sets `per_token["rollout_logprobs"]` (0 where nothing was sampled) and, per sequence, `rewards` (float32),
        `scored` (bool, False for failed ones), `truncated` (bool, True where the token limit ended it),
        `weight_versions` (int64, the oldest) and `group_ids` (int64).
        Sample ids are the places in the batch added to the first episode.

        Raises:
            ValueError: there is no trajectory.
        """
        if not trajectories:
            raise ValueError("a batch needs at least one trajectory")
        scored = [trajectory.status != "failed" for trajectory in trajectories]
        first = trajectories[0].episode
        return Batch(
            tokens=torch.cat([trajectory.tokens for trajectory in trajectories]),
            cu_seqlens=_cu_seqlens(torch.tensor([len(trajectory.tokens) for trajectory in trajectories])),
            loss_mask=torch.cat([t.sampled & kept for t, kept in zip(trajectories, scored, strict=True)]),
            sample_ids=torch.arange(first, first + len(trajectories)),
            per_token={"rollout_logprobs": torch.cat([trajectory.logprobs for trajectory in trajectories])},
            per_sequence={
                "rewards": torch.tensor([trajectory.reward for trajectory in trajectories], dtype=torch.float32),
                "scored": torch.tensor(scored, dtype=torch.bool),
                "truncated": torch.tensor([t.status == "truncated" for t in trajectories], dtype=torch.bool),
                "weight_versions": torch.tensor([t.oldest_version for t in trajectories], dtype=torch.int64),
                "group_ids": torch.tensor([trajectory.group for trajectory in trajectories], dtype=torch.int64),
            },
        )

    @staticmethod
    def from_sequences(sequences: Sequence[tuple[Tensor, Tensor]], sample_ids: Sequence[int] | None = None) -> Batch:
        """A batch of (prompt tokens, response tokens), int64 each; the responses are trained on (SFT).

        `sample_ids` default to 0, 1, 2, ...
        """
        parts = [part for pair in sequences for part in pair]
        masks = [
            torch.full((len(part),), trained, dtype=torch.bool)
            for pair in sequences
            for part, trained in zip(pair, (False, True), strict=True)
        ]
        lengths = torch.tensor([len(prompt) + len(response) for prompt, response in sequences], dtype=torch.int64)
        ids = range(len(sequences)) if sample_ids is None else sample_ids
        return Batch(
            tokens=torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64),
            cu_seqlens=_cu_seqlens(lengths),
            loss_mask=torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool),
            sample_ids=torch.tensor(list(ids), dtype=torch.int64),
        )


def _cu_seqlens(lengths: Tensor) -> Tensor:
    """int32 `[S + 1]` running sum of `lengths`, with its leading 0."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
