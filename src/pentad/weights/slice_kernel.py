"""The kernel behind `slice_sums` on CUDA devices: one pass over memory, at its speed.

Invariant: what it returns equals `slice_sums.sum_on_any_device` bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _sum_pieces(addresses, starts, lengths, sums, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    piece = tl.program_id(0)
    start = tl.load(starts + piece)
    length = tl.load(lengths + piece).to(tl.int32)
    if WIDE:
        memory = tl.load(addresses + piece).to(tl.pointer_type(tl.int32))
    else:
        memory = tl.load(addresses + piece).to(tl.pointer_type(tl.int16))
    plain = tl.zeros([BLOCK], dtype=tl.int64)
    placed = tl.zeros([BLOCK], dtype=tl.int64)
    for begin in range(0, length, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        bits = tl.load(memory + place, mask=place < length, other=0)
        if WIDE:
            placed += bits.to(tl.int64) * place
        else:
            # 2-byte bits times a place below 2^14 fits 32 bits.
            placed += (bits.to(tl.int32) * place).to(tl.int64)
        plain += bits.to(tl.int64)
    total = tl.sum(plain, axis=0) * (2 * start + 1) + 2 * tl.sum(placed, axis=0)
    tl.store(sums + piece, total)


def sum_pieces(pieces: Tensor, size: int) -> Tensor:
    """The sum of every piece.

    Args:
        pieces: int64 `[4, P]`: address, index in the whole tensor, elements (at most 2^14), anything.
        size: bytes of an element, 2 or 4.

    Returns:
        int64 `[P]`.
    """
    count = pieces.shape[1]
    sums = torch.empty(count, dtype=torch.int64, device=pieces.device)
    with torch.cuda.device(pieces.device):
        _sum_pieces[(count,)](pieces[0], pieces[1], pieces[2], sums, WIDE=size == 4, BLOCK=_BLOCK)
    return sums
