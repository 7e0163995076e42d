"""One packed microbatch as the attention layers see it.

Invariant: every token knows its own sequence and its position in it; nothing here depends on how sequences were
packed, and no step of it needs a host synchronisation on a GPU beyond building it once a microbatch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from pentad.platform.device import to_device
from pentad.trainers.megatron.runs import KeyBounds


@dataclass
class PackedInputs(PackedSeqParams):
    """Sequence bounds and rotary tables of a pack of `T` tokens in `S` sequences.

    `qkv_format` stays "sbhd", so that Megatron hands query, key and value to the core attention as they are
    (`[T, 1, heads, head_dim]`) and leaves rotation to it.

    Attributes:
        cos, sin: float32 `[T, head_dim]`, the rotary tables at each token's own position; where keys are gathered
            over context-parallel ranks, `[T / context, head_dim]`, of the rank's own tokens.
        lengths: host copy of the sequence lengths.
        padded_index: int64 `[S, longest]`, the token at each place of the padded rectangle; `T` where there is none.
        flat_index: int64 `[T]`, each token's place in the flattened rectangle.
        runs: where keys are gathered, the bounds of each run of this rank's queries, in order; else empty.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    lengths: tuple[int, ...] = ()
    padded_index: Tensor | None = None
    flat_index: Tensor | None = None
    runs: tuple[KeyBounds, ...] = ()

    @classmethod
    def build(
        cls,
        lengths: list[int],
        cos_sin: tuple[Tensor, Tensor],
        device: torch.device,
        *,
        padded: bool,
        runs: Sequence[range] = (),
    ) -> Self:
        """Describe a pack.

        Args:
            lengths: tokens in each sequence, in pack order.
            cos_sin: rotary tables `[longest, head_dim]`, float32, indexed by position.
            device: where the pack lives.
            padded: also build the index of the padded rectangle, which attention without a variable-length
                kernel needs.
            runs: where keys are gathered, the places of this rank's tokens in the pack.
        """
        size = torch.tensor(lengths, dtype=torch.int64)
        ends = size.cumsum(0)
        cu_seqlens = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        total, longest = int(ends[-1]), max(lengths)
        starts = ends - size
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), size)
        positions = torch.arange(total) - starts[sequence]
        padded_index = flat_index = None
        if padded and not runs:
            flat_index = sequence * longest + positions
            padded_index = torch.full((len(lengths) * longest,), total, dtype=torch.int64)
            padded_index[flat_index] = torch.arange(total)
            padded_index = to_device(padded_index.view(len(lengths), longest), device)
            flat_index = to_device(flat_index, device)
        if runs:
            positions = torch.cat([positions[run.start : run.stop] for run in runs])
        positions = to_device(positions, device)
        cu_seqlens = to_device(cu_seqlens, device)
        return cls(
            qkv_format="sbhd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            cos=cos_sin[0][positions],
            sin=cos_sin[1][positions],
            lengths=tuple(lengths),
            padded_index=padded_index,
            flat_index=flat_index,
            runs=tuple(KeyBounds.of(run, lengths, device) for run in runs),
        )
