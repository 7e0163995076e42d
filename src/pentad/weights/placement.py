"""Which rank of a layout holds what, where there are no processes: for files as ranks would write them.

Invariant: a rank's place is the one that Megatron gives it in its default order (tensor, context, expert, data,
pipeline; the first varies fastest), which a test compares with Megatron's process groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pentad.layout import Layout


@dataclass(frozen=True)
class Part:
    """A rank's part of what a group of ranks shares, in place of a process group."""

    index: int
    count: int

    def rank(self) -> int:
        """Of this rank in the group."""
        return self.index

    def size(self) -> int:
        """Of the group."""
        return self.count


@dataclass(frozen=True)
class Place:
    """The place of one rank.

    Attributes:
        number: of the rank.
        stage: its pipeline stage.
        tp, ep, expt_tp: its parts of matrices, of the experts, and of the matrices of an expert.
        first_dense: whether it is the first of the ranks with the same part of what is no expert.
        first_expert: the same of experts.
    """

    number: int
    stage: int
    tp: Part
    ep: Part
    expt_tp: Part
    first_dense: bool
    first_expert: bool


def places(layout: Layout) -> Iterator[Place]:
    """The places of all ranks, in order."""
    tensor, expert_tensor, expert = layout.tensor, layout.expert_tensor, layout.expert
    for number in range(layout.world):
        stage, inner = divmod(number, layout.world // layout.pipeline)
        yield Place(
            number,
            stage,
            tp=Part(inner % tensor, tensor),
            ep=Part(inner // expert_tensor % expert, expert),
            expt_tp=Part(inner % expert_tensor, expert_tensor),
            first_dense=inner < tensor,
            first_expert=inner < expert_tensor * expert,
        )
