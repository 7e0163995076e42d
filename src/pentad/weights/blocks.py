"""Which rectangles of Hugging Face tensors a rank's parameter is made of: pure arithmetic of shapes.

Invariant: the blocks of a parameter are disjoint runs of its elements and together hold all of them but padding; over
all tensor-parallel ranks the blocks of a split parameter hold every element of its Hugging Face tensors exactly once.
They agree with `pentad.weights.sharding`, which moves the elements themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from pentad.families.facts import ModelFacts
from pentad.families.rules import QKV, Column, Experts, Gated, Replicated, Row, Rule, Stacked, Vocab

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """A rectangle of a Hugging Face tensor, which is a contiguous run of a rank's parameter.

    Attributes:
        name: of the Hugging Face tensor.
        shape: of the whole tensor, of one or two dimensions.
        offsets: of the rectangle's first element in the whole tensor, by dimension.
        sizes: of the rectangle.
        start: index of the rectangle's first element in the parameter, row-major; the others follow it, row-major.
    """

    name: str
    shape: Shape
    offsets: Shape
    sizes: Shape
    start: int

    @property
    def elements(self) -> int:
        """How many elements the rectangle has."""
        return prod(self.sizes)

    @property
    def stop(self) -> int:
        """Index of the element of the parameter that follows the rectangle."""
        return self.start + self.elements


def blocks_of(
    rule: Rule, names: Sequence[str], facts: ModelFacts, local_shape: Shape, rank: int, size: int
) -> list[Block]:
    """The blocks of the parameter of tensor-parallel `rank` out of `size`, in the order of its elements.

    Args:
        rule: of the parameter; `Experts`: of one expert.
        names: of its Hugging Face tensors.
        local_shape: of the rank's part; `Experts`: of one expert's.
        rank, size: in the group that splits the parameter; for experts, the expert-tensor-parallel one.

    Raises:
        ValueError: the rule gives a part of another shape.
    """
    rule = rule.each if isinstance(rule, Experts) else rule
    rows, *rest = local_shape
    spans = list(_SPANS[type(rule)](rule, tuple(local_shape), facts, rank, size))
    row_elements = prod(rest)
    blocks, row = [], 0
    for span in spans:
        if span.rows:
            offsets, sizes = (span.first_row, *span.column_offset), (span.rows, *rest)
            blocks.append(Block(names[span.tensor], span.shape, offsets, sizes, row * row_elements))
        row += span.rows
    if row > rows or (row < rows and not isinstance(rule, Vocab)):
        raise ValueError(f"{names[0]}: rule gives {row} rows, parameter is {list(local_shape)}")
    return blocks


def cut(block: Block, start: int, stop: int) -> list[Block]:
    """The part of a block in the run `start` to `stop` of the parameter.

    Returns:
        at most three blocks, in order: the end of a row, whole rows, the beginning of a row.
    """
    first, last = max(start, block.start) - block.start, min(stop, block.stop) - block.start
    if first >= last:
        return []
    if len(block.sizes) == 1:
        return [_part(block, (first,), (last - first,), first)]
    width = block.sizes[1]
    first_row, first_column = divmod(first, width)
    last_row, last_column = divmod(last, width)
    if first_row == last_row:
        return [_part(block, (first_row, first_column), (1, last - first), first)]
    parts = []
    if first_column:
        parts.append(_part(block, (first_row, first_column), (1, width - first_column), first))
        first_row += 1
    if first_row < last_row:
        parts.append(_part(block, (first_row, 0), (last_row - first_row, width), first_row * width))
    if last_column:
        parts.append(_part(block, (last_row, 0), (1, last_column), last_row * width))
    return parts


def whole_block(name: str, shape: Shape) -> Block:
    """All of a tensor."""
    return Block(name, shape, (0,) * len(shape), shape, 0)


def slabs(block: Block, elements: int) -> Iterator[Block]:
    """A block as runs of whole rows, in order, each of at most so many elements; at least one row each."""
    rows = max(1, elements // max(1, prod(block.sizes[1:])))
    for first in range(0, block.sizes[0], rows):
        count = min(rows, block.sizes[0] - first)
        offsets, width = (first, *(0 for _ in block.sizes[1:])), prod(block.sizes[1:])
        yield _part(block, offsets, (count, *block.sizes[1:]), first * width)


def _part(block: Block, offsets: Shape, sizes: Shape, start: int) -> Block:
    """A rectangle of a block; offsets and start count from the block's own."""
    moved = tuple(one + other for one, other in zip(block.offsets, offsets, strict=True))
    return Block(block.name, block.shape, moved, sizes, block.start + start)


@dataclass(frozen=True)
class _Span:
    """Consecutive rows of a rank's parameter that are rows of one Hugging Face tensor.

    Attributes:
        tensor: index of the tensor in the rule.
        shape: of the whole tensor.
        first_row: in the whole tensor.
        column_offset: of the parameter's columns in the whole tensor; empty for one dimension.
    """

    tensor: int
    shape: Shape
    first_row: int
    rows: int
    column_offset: Shape


def _zeros(local_shape: Shape) -> Shape:
    return (0,) * (len(local_shape) - 1)


def _replicated(rule: Any, local: Shape, facts: ModelFacts, rank: int, size: int) -> Iterator[_Span]:
    yield _Span(0, local, 0, local[0], _zeros(local))


def _stacked(rule: Stacked, local: Shape, facts: ModelFacts, rank: int, size: int) -> Iterator[_Span]:
    count = len(rule.hugging_face)
    rows, *rest = local[0] // count, *local[1:]
    yield from (_Span(tensor, (rows, *rest), 0, rows, _zeros(local)) for tensor in range(count))


def _row(rule: Any, local: Shape, facts: ModelFacts, rank: int, size: int) -> Iterator[_Span]:
    rows, columns = local
    yield _Span(0, (rows, columns * size), 0, rows, (rank * columns,))


def _column(rule: Any, local: Shape, facts: ModelFacts, rank: int, size: int) -> Iterator[_Span]:
    rows, *rest = local
    yield _Span(0, (rows * size, *rest), rank * rows, rows, _zeros(local))


def _vocab(rule: Any, local: Shape, facts: ModelFacts, rank: int, size: int) -> Iterator[_Span]:
    rows, *rest = local
    if rows * size != facts.padded_vocab(size):
        raise ValueError(f"{rows} rows on each of {size} ranks, the vocabulary is {facts.vocab_size}")
    first = min(rank * rows, facts.vocab_size)
    held = min(rows, facts.vocab_size - first)
    yield _Span(0, (facts.vocab_size, *rest), first, held, _zeros(local))


def _gated(rule: Any, local: Shape, facts: ModelFacts, rank: int, size: int) -> Iterator[_Span]:
    rows, *rest = local
    for tensor in range(2):
        yield _Span(tensor, (rows // 2 * size, *rest), rank * (rows // 2), rows // 2, _zeros(local))


def _qkv(rule: QKV, local: Shape, facts: ModelFacts, rank: int, size: int) -> Iterator[_Span]:
    """Of the interleaved rows of all groups, those of this rank; it may hold a part of a group."""
    rows, *rest = local
    # Rows of queries, keys and values in one group, and in the whole tensors.
    heads = (facts.num_heads // facts.num_kv_heads, 1, 1)
    in_group = [heads[part] * facts.head_dim for part in rule.parts]
    first, last = rank * rows, (rank + 1) * rows
    if rows * size != sum(in_group) * facts.num_kv_heads:
        raise ValueError(f"{rows} rows on each of {size} ranks, the projections have {sum(in_group)} a group")
    for group in range(first // sum(in_group), -(-last // sum(in_group))):
        place = group * sum(in_group)
        for tensor, count in enumerate(in_group):
            begin, end = max(first, place), min(last, place + count)
            if begin < end:
                shape = (count * facts.num_kv_heads, *rest)
                yield _Span(tensor, shape, group * count + begin - place, end - begin, _zeros(local))
            place += count


_SPANS: dict[type[Rule], Callable[[Any, Shape, ModelFacts, int, int], Iterator[_Span]]] = {
    Replicated: _replicated,
    Stacked: _stacked,
    Row: _row,
    Column: _column,
    Vocab: _vocab,
    Gated: _gated,
    QKV: _qkv,
}
