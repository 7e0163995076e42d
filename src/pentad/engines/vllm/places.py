"""Where the tensors of a checkpoint go in a worker's memory.

Invariant: `load` writes what the model's own loader wrote when it was recorded, to the same places, with one launch for
many tensors; what it wrote is shown by `sums`, which reads the memory.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pentad.engines.vllm.recorder import RecordedFill, RecordedSlice
from pentad.weights.slice_sums import SliceTable


class WeightPlaces:
    """Places of all tensors of a model, which must stay where they are.

    Args:
        slices: what each place takes of which tensor.
        fills: places that hold a constant.
    """

    def __init__(self, slices: Sequence[RecordedSlice], fills: Sequence[RecordedFill]) -> None:
        self._by_name: dict[str, list[RecordedSlice]] = {}
        for record in slices:
            self._by_name.setdefault(record.name, []).append(record)
        self._fills = [fill for fill in fills if fill.memory.numel()]
        self._table = SliceTable([record.memory for record in slices], [record.part for record in slices])

    def fill(self) -> None:
        """Write the constants, which are gone where memory was given away meanwhile."""
        for fill in self._fills:
            fill.memory.fill_(fill.value)

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write whole, contiguous tensors to their places."""
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for name, tensor in tensors:
            for record in self._by_name.get(name, ()):
                part = record.part
                targets.append(record.memory)
                sources.append(tensor.as_strided(part.shape, part.strides, tensor.storage_offset() + part.offset))
        if targets:
            torch._foreach_copy_(targets, sources)

    def sums(self) -> Tensor:
        """The sum of what each place holds, int64 `[slices]`, in the order in which they were recorded."""
        return self._table.sums()
