"""Tensors back to back in one buffer, with a table of contents.

Invariant: a tensor that is viewed through its entry is bit-equal to what was put in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pentad.weights.slice_sums import SliceTable
from pentad.weights.slices import Slice

# Tensors begin at multiples of this, so that kernels may read them in wide words.
_ALIGNMENT = 512


@dataclass(frozen=True)
class Entry:
    """One tensor in a bucket: its name, dtype, shape and first byte."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return Slice.whole(self.shape).elements * self.dtype.itemsize

    def view(self, data: Tensor) -> Tensor:
        """The tensor in a bucket's data, uint8 `[bytes]`."""
        return data[self.offset : self.offset + self.bytes].view(self.dtype).view(self.shape)


class PackedBucket:
    """Tensors that are being put into a buffer.

    Args:
        buffer: uint8 `[bytes]`.

    Attributes:
        entries: of the tensors that are in it.
    """

    def __init__(self, buffer: Tensor) -> None:
        self.entries: list[Entry] = []
        self._buffer, self._used = buffer, 0

    def has_room(self, tensor: Tensor) -> bool:
        """Whether a tensor fits in beside the others."""
        return self._used + tensor.numel() * tensor.element_size() <= len(self._buffer)

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor in."""
        entry = Entry(name, tensor.dtype, tuple(tensor.shape), self._used)
        entry.view(self._buffer).copy_(tensor)
        self.entries.append(entry)
        self._used = -(-(self._used + entry.bytes) // _ALIGNMENT) * _ALIGNMENT

    def sums(self) -> Tensor:
        """The checksum of each tensor, int64 `[tensors]` modulo 2^64, on the buffer's device."""
        memories = [entry.view(self._buffer) for entry in self.entries]
        return SliceTable(memories, [Slice.whole(entry.shape) for entry in self.entries]).sums()
