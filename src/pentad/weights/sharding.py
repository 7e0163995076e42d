"""How one Megatron parameter corresponds to one or more Hugging Face tensors.

Invariant: `join` undoes `shard` bit for bit, for every number of ranks. A rule knows tensors and sizes, and nothing
of files, processes or layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pentad.families.facts import ModelFacts


@dataclass(frozen=True)
class Rule:
    """Base of the rules.

    Attributes:
        megatron: parameter name; `{layer}` stands for the layer's number in the whole model.
        hugging_face: tensor names, with the same placeholder.
    """

    megatron: str
    hugging_face: tuple[str, ...]

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        """The part of tensor-parallel `rank` out of `size`, from whole Hugging Face tensors."""
        raise NotImplementedError

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        """Whole Hugging Face tensors, from the parts of all tensor-parallel ranks in order."""
        raise NotImplementedError


class Replicated(Rule):
    """Every rank holds the whole tensor (norms)."""

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        return tensors[0]

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        return [shards[0]]


class Row(Rule):
    """Split along the input dimension."""

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        return tensors[0].chunk(size, dim=1)[rank]

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        return [torch.cat(shards, dim=1)]


class Vocab(Rule):
    """Rows of the vocabulary, padded with zeros to a multiple of the ranks."""

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        rows = facts.padded_vocab(size) // size
        mine = tensors[0][rank * rows : (rank + 1) * rows]
        if mine.shape[0] == rows:
            return mine
        return torch.cat([mine, mine.new_zeros(rows - mine.shape[0], *mine.shape[1:])])

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        return [torch.cat(shards)[: facts.vocab_size]]


class Gated(Rule):
    """Gate and up projection; each rank holds its rows of the one, then its rows of the other."""

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        return torch.cat([tensor.chunk(size)[rank] for tensor in tensors])

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        halves = [shard.chunk(2) for shard in shards]
        return [torch.cat([half[i] for half in halves]) for i in range(2)]


class Column(Rule):
    """Split along the output dimension."""

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        return tensors[0].chunk(size)[rank]

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        return [torch.cat(shards)]


@dataclass(frozen=True)
class Experts(Rule):
    """The same matrices of all experts, stacked in one parameter; `{expert}` stands for the expert's number.

    Experts are spread over the expert-parallel ranks in order, and each is split over the expert-tensor-parallel
    ranks by the rule `each`, which `shard` and `join` speak of: they handle one expert.
    """

    each: Rule

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        return self.each.shard(tensors, facts, rank, size)

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        return self.each.join(shards, facts)


class QKV(Rule):
    """Query, key and value projections (weights or biases), interleaved by key/value head.

    Rows are ordered `[queries of group 0, key 0, value 0, queries of group 1, ...]` and split evenly. With more ranks
    than key/value heads a group spans several ranks, which Megatron's attention gathers again.
    """

    def shard(self, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
        tail = tensors[0].shape[1:]
        grouped = [tensor.reshape(facts.num_kv_heads, -1, *tail) for tensor in tensors]
        return torch.cat(grouped, dim=1).flatten(0, 1).chunk(size)[rank]

    def join(self, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
        whole = torch.cat(shards)
        tail = whole.shape[1:]
        per_group = facts.num_heads // facts.num_kv_heads * facts.head_dim
        sizes = [per_group, facts.head_dim, facts.head_dim]
        parts = whole.reshape(facts.num_kv_heads, sum(sizes), *tail).split(sizes, dim=1)
        return [part.flatten(0, 1) for part in parts]
