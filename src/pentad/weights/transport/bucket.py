"""Weights on their way from trainer to engine: flat buffers of bytes with a table of contents.

Invariant: what `tensors` yields is bit-equal to what was packed, and the checksum of each tensor was taken before it
left.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pentad.weights.checksum import checksum


@dataclass(frozen=True)
class Entry:
    """One tensor in a bucket: its name, dtype, shape, first byte, and checksum."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    checksum: int


@dataclass(frozen=True)
class Bucket:
    """Some tensors, back to back in `data` (uint8 `[bytes]`)."""

    entries: tuple[Entry, ...]
    data: np.ndarray

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, on the CPU; valid as long as the bucket is. They must not be written to."""
        for entry in self.entries:
            size = int(np.prod(entry.shape, dtype=np.int64)) * entry.dtype.itemsize
            raw = self.data[entry.offset : entry.offset + size]
            # torch cannot express read-only memory, which shared memory is; nothing here writes.
            flat = torch.frombuffer(memoryview(raw), dtype=torch.uint8) if raw.flags.writeable else _readonly(raw)
            yield entry.name, flat.view(entry.dtype).view(entry.shape)


def pack(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, bucket_bytes: int) -> Iterator[Bucket]:
    """Cast tensors and pack them in order; a tensor larger than a bucket gets one of its own.

    Args:
        tensors: name and whole tensor, on any device.
        dtype: what the engine holds; None keeps the dtype of each tensor.
        bucket_bytes: a bucket is closed before it would pass this.
    """
    entries: list[Entry] = []
    parts: list[Tensor] = []
    offset = 0
    for name, tensor in tensors:
        sent = tensor.detach().to(dtype or tensor.dtype).contiguous()
        size = sent.numel() * sent.element_size()
        if entries and offset + size > bucket_bytes:
            yield _close(entries, parts)
            entries, parts, offset = [], [], 0
        entries.append(Entry(name, sent.dtype, tuple(sent.shape), offset, checksum(sent)))
        parts.append(sent.view(-1).view(torch.uint8))
        offset += size
    if entries:
        yield _close(entries, parts)


def _close(entries: list[Entry], parts: list[Tensor]) -> Bucket:
    return Bucket(tuple(entries), torch.cat(parts).cpu().numpy())


def _readonly(raw: np.ndarray) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(raw)
