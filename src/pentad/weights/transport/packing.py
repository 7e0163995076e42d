"""Tensors back to back in one buffer, with a table of contents.

Invariant: a tensor that is viewed through its entry is bit-equal to what was put in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pentad.weights.checksum import checksum
from pentad.weights.slice_sums import SliceTable, unsigned
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

    @property
    def used(self) -> int:
        """Bytes up to the end of the last tensor."""
        return end_of(self.entries)


class Checksums:
    """The checksums of tensors, of one bucket after the other; what a GPU computes is fetched once, at the end."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[Tensor] = []
        self._found: dict[str, int] = {}

    def add(self, entries: Sequence[Entry], buffer: Tensor) -> None:
        """Take those of the tensors in a buffer."""
        memories = [entry.view(buffer) for entry in entries]
        if not buffer.is_cuda:
            self._found |= {entry.name: checksum(memory) for entry, memory in zip(entries, memories, strict=True)}
            return
        self._names += [entry.name for entry in entries]
        self._sums.append(SliceTable(memories, [Slice.whole(entry.shape) for entry in entries]).sums())

    def collect(self) -> dict[str, int]:
        """All of them, by name."""
        values = torch.cat(self._sums).tolist() if self._sums else []
        return self._found | {name: unsigned(value) for name, value in zip(self._names, values, strict=True)}


def end_of(entries: Sequence[Entry]) -> int:
    """Bytes of a buffer up to the end of the last tensor."""
    return entries[-1].offset + entries[-1].bytes if entries else 0
