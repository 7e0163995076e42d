"""A checksum of a tensor's bits that is the same on every device, and that slices of the tensor add up to.

Invariant: the checksum is the sum over the elements of `bits[i] * weight(i)` modulo 2^64, `i` being the element's index
in the whole tensor, row-major. So a slice's part of it can be computed wherever the slice is, from its indices alone.
"""

from functools import cache

import torch
from torch import Tensor

SPAN = 1 << 16
"""Elements whose indices share all but the lower 16 bits."""
BIT_VIEWS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""As what the bits of an element are read, by its bytes."""

# Spans at a time: what stays in a CPU's cache, and what keeps a GPU busy without much memory.
_SPANS_AT_ONCE = {False: 1, True: 256}
# SplitMix64 (Steele, Lea and Flood, https://doi.org/10.1145/2660193.2660195): increment and multipliers.
_GAMMA, _MULTIPLIERS = 0x9E37_79B9_7F4A_7C15, (0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB)
_LOW_SEED, _HIGH_SEED = 0, 0x5851_F42D_4C95_7F2D


def checksum(tensor: Tensor) -> int:
    """A 64-bit checksum of a tensor's bits, elements in row-major order. Shape is not part of it, dtype is.

    What it sees, the weights being odd and the indices below 2^48:

    - a change of one element: always;
    - changes of several elements that were not made with the weights in mind: all but a part of 2^(k - 63), where 2^k
      is the largest power of two that divides all the changes of their bits as integers. k is 0 for most changes; it
      is at most 15 where elements have 2 bytes, and 31 where they have 4 (there, only signs changed). Elements that
      changed places are such changes: swapped, shifted, reversed, or +1, -2, +1 at neighbours.

    It is no protection from a change that is made to go unseen, and none from adding or removing zeros at the end.
    """
    flat = tensor.detach().contiguous().view(-1)
    bits = flat.view(BIT_VIEWS[flat.element_size()])
    low = low_weights(bits.device)
    step = SPAN * _SPANS_AT_ONCE[bits.device.type == "cuda"]
    high = _first_high_weights(bits.device, -(-len(bits) // (SPAN << 10)) << 10)  # few different tables
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), step):
        part = bits[start : start + step].to(torch.int64)
        first, spans = start // SPAN, len(part) // SPAN
        whole, rest = part[: spans * SPAN].view(spans, SPAN), part[spans * SPAN :]
        if spans:
            total += ((whole * low).sum(1) * high[first : first + spans]).sum()
        if len(rest):
            total += (rest * low[: len(rest)]).sum() * high[first + spans]
    return int(total) & 0xFFFF_FFFF_FFFF_FFFF


def index_weights(index: Tensor) -> Tensor:
    """The weight of each element in a checksum.

    It is the product, modulo 2^64, of two odd numbers: `mix(low) | 1` and `mix(high + seed) | 1`, of the lower 16 bits
    of the index and of the rest, where `mix(n)` is the number that SplitMix64 gives for the state `(n + 1) * gamma`.

    Args:
        index: int64, not negative: places in the whole tensor, row-major.

    Returns:
        int64 of the same shape, read modulo 2^64.
    """
    return low_weights(index.device)[index & (SPAN - 1)] * high_weights(index >> 16)


@cache
def low_weights(device: torch.device) -> Tensor:
    """The factors of the places in a span, int64 `[2^16]`."""
    return _mix(torch.arange(SPAN, device=device) + _LOW_SEED).bitwise_or_(1)


def high_weights(spans: Tensor) -> Tensor:
    """The factors of spans by their numbers, int64 of the same shape."""
    return _mix(spans + _HIGH_SEED).bitwise_or_(1)


@cache
def _first_high_weights(device: torch.device, spans: int) -> Tensor:
    return high_weights(torch.arange(spans, device=device))


def _mix(number: Tensor) -> Tensor:
    """Modulo 2^64, which is what int64 products and sums are."""
    state = (number + 1) * _signed(_GAMMA)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        state = (state ^ _shift_right(state, shift)) * _signed(multiplier)
    return state ^ _shift_right(state, 31)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Zeros come in from the left; int64 `>>` would bring the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
