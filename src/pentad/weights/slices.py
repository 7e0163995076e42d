"""Slices of a checkpoint tensor: which of its elements some memory holds, and whether several slices make it whole.

Invariant: a slice names its elements by their index in the whole tensor, row-major, so sums over slices add up to the
checksum of the tensor whatever the layout of the memory that holds them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# More runs than this mean that neighbours in memory are no neighbours in the tensor, element by element.
_MOST_RUNS = 1 << 24


@dataclass(frozen=True)
class Slice:
    """Part of a tensor: element `(i, j, ...)` has index `offset + i * strides[0] + j * strides[1] + ...` in the whole.

    Attributes:
        offset: index of the first element.
        shape: of the part.
        strides: in elements of the whole tensor.
    """

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Slice":
        """All of a contiguous tensor."""
        strides = [1] * len(shape)
        for dimension in reversed(range(len(shape) - 1)):
            strides[dimension] = strides[dimension + 1] * shape[dimension + 1]
        return cls(0, tuple(shape), tuple(strides))

    @property
    def elements(self) -> int:
        """How many elements the part has."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Runs:
    """Pieces of one length that are contiguous in the whole tensor and in the memory that holds them.

    Attributes:
        length: elements of each piece.
        starts: int64 `[R]`, index of each piece's first element in the whole tensor.
        places: int64 `[R]`, elements between the start of the memory and the piece.
    """

    length: int
    starts: np.ndarray
    places: np.ndarray


def runs_of(part: Slice, memory_strides: Sequence[int]) -> Runs:
    """Cut a slice into contiguous pieces, as long as they can be.

    Args:
        memory_strides: strides, in elements, of the memory that holds the part.

    Raises:
        NotImplementedError: there would be more than 2^24 pieces.
    """
    length, inner = 1, len(part.shape)
    while inner and part.shape[inner - 1] in (1, *_contiguous(part, memory_strides, inner - 1, length)):
        inner -= 1
        length *= part.shape[inner]
    starts = np.full(1, part.offset, dtype=np.int64)
    places = np.zeros(1, dtype=np.int64)
    for size, stride, memory_stride in zip(
        part.shape[:inner], part.strides[:inner], memory_strides[:inner], strict=True
    ):
        if len(starts) * size > _MOST_RUNS:
            raise NotImplementedError(f"a slice of shape {list(part.shape)} lies in more than {_MOST_RUNS:,} pieces")
        steps = np.arange(size, dtype=np.int64)
        starts = (starts[:, None] + steps * stride).ravel()
        places = (places[:, None] + steps * memory_stride).ravel()
    return Runs(length, starts, places)


def _contiguous(part: Slice, memory_strides: Sequence[int], dimension: int, length: int) -> tuple[int, ...]:
    """The size of a dimension, where its neighbours are `length` elements apart in both tensor and memory."""
    same = part.strides[dimension] == length == memory_strides[dimension]
    return (part.shape[dimension],) if same else ()


def tiling_problem(elements: int, parts: Sequence[Slice]) -> str | None:
    """Whether distinct slices make up a tensor, each element once.

    Args:
        elements: of the whole tensor.

    Returns:
        what is wrong, or None.
    """
    intervals = []
    for part in parts:
        runs = runs_of(part, part.strides)
        intervals.append(np.stack([runs.starts, runs.starts + runs.length]))
    return interval_problem(elements, np.concatenate(intervals, axis=1)) if intervals else "no engine holds it"


def interval_problem(elements: int, intervals: np.ndarray) -> str | None:
    """Whether half-open intervals, int64 `[2, R]`, cover 0 to `elements` without a gap or an overlap."""
    order = np.argsort(intervals[0], kind="stable")
    starts, ends = intervals[0][order], intervals[1][order]
    expected = np.concatenate([[0], ends[:-1]])
    wrong = np.flatnonzero(starts != expected)
    if len(wrong):
        at = int(wrong[0])
        kind = "is held twice" if starts[at] < expected[at] else "is not held"
        return f"element {min(int(starts[at]), int(expected[at]))} of {elements} {kind}"
    if ends[-1] != elements:
        return f"element {int(ends[-1])} of {elements} is not held"
    return None
