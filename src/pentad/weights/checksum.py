"""A checksum of a tensor's bits that is the same on every device."""

import torch
from torch import Tensor

# Elements at a time: what stays in a CPU's cache, and what keeps a GPU busy without much memory.
_CHECKSUM_CHUNK = {False: 1 << 16, True: 1 << 24}
_BIT_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensor: Tensor) -> int:
    """A 64-bit checksum of a tensor's bits that sees every changed, swapped or moved element.

    It is the sum of `bits[i] * (2 i + 1)` modulo 2^64 over the elements in row-major order. Integers add up to the
    same on every device, in whatever order. Shape is not part of it, dtype is.
    """
    flat = tensor.detach().contiguous().view(-1)
    bits = flat.view(_BIT_VIEWS[flat.element_size()])
    chunk = _CHECKSUM_CHUNK[bits.device.type == "cuda"]
    odd = torch.arange(min(chunk, len(bits)), device=bits.device).mul_(2).add_(1)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), chunk):
        part = bits[start : start + chunk].to(torch.int64)
        total += (part * odd[: len(part)]).sum() + 2 * start * part.sum()
    return int(total) & 0xFFFF_FFFF_FFFF_FFFF
