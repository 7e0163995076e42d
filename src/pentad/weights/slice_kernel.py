"""The kernel behind `slice_sums` on CUDA devices: one pass over memory, at its speed.

Invariant: what it returns equals `slice_sums.sum_on_any_device` bit for bit.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from pentad.weights.checksum import SPAN, high_weights, low_weights

_BLOCK = 2048


@triton.jit
def _sum_pieces(
    addresses, starts, lengths, low, highs, sums, WIDE: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr
):
    piece = tl.program_id(0)
    offset = (tl.load(starts + piece) % SPAN).to(tl.int32)
    length = tl.load(lengths + piece).to(tl.int32)
    if WIDE:
        memory = tl.load(addresses + piece).to(tl.pointer_type(tl.int32))
    else:
        memory = tl.load(addresses + piece).to(tl.pointer_type(tl.int16))
    # Of the span in which the piece begins, and of the next.
    first = tl.zeros([BLOCK], dtype=tl.int64)
    second = tl.zeros([BLOCK], dtype=tl.int64)
    for begin in range(0, length, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = offset + place
        bits = tl.load(memory + place, mask=place < length, other=0).to(tl.int64)
        weighted = bits * tl.load(low + inside % SPAN)
        first += tl.where(inside < SPAN, weighted, 0)
        second += tl.where(inside < SPAN, 0, weighted)
    total = tl.sum(first, axis=0) * tl.load(highs + 2 * piece) + tl.sum(second, axis=0) * tl.load(highs + 2 * piece + 1)
    tl.store(sums + piece, total)


def sum_pieces(pieces: Tensor, size: int) -> Tensor:
    """The sum of every piece.

    Args:
        pieces: int64 `[4, P]`: address, index in the whole tensor, elements (at most 2^14, less than a span), anything.
        size: bytes of an element, 2 or 4.

    Returns:
        int64 `[P]`.
    """
    count = pieces.shape[1]
    sums = torch.empty(count, dtype=torch.int64, device=pieces.device)
    spans = pieces[1] // SPAN
    highs = high_weights(torch.stack([spans, spans + 1], dim=1))
    low = low_weights(pieces.device)
    with torch.cuda.device(pieces.device) if pieces.is_cuda else nullcontext():
        _sum_pieces[(count,)](
            pieces[0], pieces[1], pieces[2], low, highs, sums, WIDE=size == 4, SPAN=SPAN, BLOCK=_BLOCK
        )
    return sums
