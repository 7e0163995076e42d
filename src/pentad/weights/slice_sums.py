"""Checksums of slices: the part that some memory contributes to the checksum of a whole tensor.

Invariant: the sums of slices that tile a tensor add up, modulo 2^64, to the `checksum` of the whole tensor.
They are the same on every device, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pentad.weights.checksum import BIT_VIEWS, index_weights
from pentad.weights.slices import Slice, runs_of

_MASK = 0xFFFF_FFFF_FFFF_FFFF
# Elements that one program of the kernel sums up; they lie in at most two spans of the checksum.
_PIECE = 1 << 14


def unsigned(value: int) -> int:
    """A sum modulo 2^64."""
    return int(value) & _MASK


def sum_on_any_device(memory: Tensor, part: Slice) -> Tensor:
    """The sum of one slice, int64 scalar; the plain form that the kernel is checked against.

    Args:
        memory: what holds the part, of the part's shape.
    """
    index = torch.full((), part.offset, dtype=torch.int64, device=memory.device)
    for size, stride in zip(part.shape, part.strides, strict=True):
        index = index[..., None] + torch.arange(size, device=memory.device) * stride
    # A view of the bits needs a contiguous last dimension.
    bits = memory.detach().contiguous().view(BIT_VIEWS[memory.element_size()])
    return (bits.to(torch.int64) * index_weights(index)).sum()


@dataclass
class SliceTable:
    """Many slices, to be summed by one kernel launch, again and again.

    Attributes:
        memories: what holds each slice; the memory must stay where it is.
    """

    memories: Sequence[Tensor]
    parts: Sequence[Slice]

    def __post_init__(self) -> None:
        for memory, part in zip(self.memories, self.parts, strict=True):
            if tuple(memory.shape) != part.shape:
                raise ValueError(f"a slice of shape {list(part.shape)} is held as {list(memory.shape)}")
        self._pieces: Tensor | None = None

    @torch.no_grad()
    def sums(self) -> Tensor:
        """int64 `[slices]`, on the device of the memories."""
        if not self.memories:
            return torch.zeros(0, dtype=torch.int64)
        if self.memories[0].is_cuda and self.memories[0].element_size() in (2, 4):
            return self._on_cuda()
        pairs = zip(self.memories, self.parts, strict=True)
        return torch.stack([sum_on_any_device(memory, part) for memory, part in pairs])

    def _on_cuda(self) -> Tensor:
        from pentad.weights.slice_kernel import sum_pieces

        first = self.memories[0]
        size = first.element_size()
        if any(memory.element_size() != size or memory.device != first.device for memory in self.memories):
            raise ValueError("the slices of one table must have elements of one size, on one device")
        if self._pieces is None:
            self._pieces = torch.from_numpy(self._cut(size)).to(first.device)
        pieces = self._pieces
        sums = torch.zeros(len(self.memories), dtype=torch.int64, device=first.device)
        return sums.index_add_(0, pieces[3], sum_pieces(pieces, size))

    def _cut(self, size: int) -> np.ndarray:
        """int64 `[4, pieces]`: address, index in the whole tensor, elements, slice."""
        addresses, starts, lengths, numbers = [], [], [], []
        for number, (memory, part) in enumerate(zip(self.memories, self.parts, strict=True)):
            runs = runs_of(part, memory.stride())
            count = len(runs.starts)
            addresses.append(memory.data_ptr() + size * runs.places)
            starts.append(runs.starts)
            lengths.append(np.full(count, runs.length, dtype=np.int64))
            numbers.append(np.full(count, number, dtype=np.int64))
        return _pieces(*(np.concatenate(column) for column in (addresses, starts, lengths, numbers)), size)


def _pieces(
    addresses: np.ndarray, starts: np.ndarray, lengths: np.ndarray, numbers: np.ndarray, size: int
) -> np.ndarray:
    """Runs cut into pieces that one program takes: int64 `[4, pieces]`."""
    counts = -(-lengths // _PIECE)
    run = np.repeat(np.arange(len(lengths)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    begin = (np.arange(len(run)) - first) * _PIECE
    return np.stack(
        [addresses[run] + begin * size, starts[run] + begin, np.minimum(_PIECE, lengths[run] - begin), numbers[run]]
    )
