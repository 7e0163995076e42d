"""The weight rules of `pentad.families.rules`, executed: whole tensors to the parts of ranks, and back.

Invariant: `join` undoes `shard` bit for bit, for every number of ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pentad.families.facts import ModelFacts
from pentad.families.rules import QKV, Column, Experts, Gated, Replicated, Row, Rule, Stacked, Vocab


def shard(rule: Rule, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
    """The part of tensor-parallel `rank` out of `size`, from whole Hugging Face tensors. `Experts`: of one expert."""
    rule = _inner(rule)
    return _SPLITS[type(rule)].shard(rule, tensors, facts, rank, size)


def join(rule: Rule, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
    """Whole Hugging Face tensors, from the parts of all tensor-parallel ranks in order. `Experts`: of one expert."""
    rule = _inner(rule)
    return _SPLITS[type(rule)].join(rule, shards, facts)


@dataclass(frozen=True)
class _Split:
    shard: Callable[[Any, list[Tensor], ModelFacts, int, int], Tensor]
    join: Callable[[Any, list[Tensor], ModelFacts], list[Tensor]]


def _inner(rule: Rule) -> Rule:
    return rule.each if isinstance(rule, Experts) else rule


def _shard_vocab(rule: Vocab, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
    rows = facts.padded_vocab(size) // size
    mine = tensors[0][rank * rows : (rank + 1) * rows]
    if mine.shape[0] == rows:
        return mine
    return torch.cat([mine, mine.new_zeros(rows - mine.shape[0], *mine.shape[1:])])


def _join_gated(rule: Gated, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
    halves = [shard.chunk(2) for shard in shards]
    return [torch.cat([half[i] for half in halves]) for i in range(2)]


def _shard_qkv(rule: QKV, tensors: list[Tensor], facts: ModelFacts, rank: int, size: int) -> Tensor:
    tail = tensors[0].shape[1:]
    grouped = [tensor.reshape(facts.num_kv_heads, -1, *tail) for tensor in tensors]
    return torch.cat(grouped, dim=1).flatten(0, 1).chunk(size)[rank]


def _join_qkv(rule: QKV, shards: list[Tensor], facts: ModelFacts) -> list[Tensor]:
    whole = torch.cat(shards)
    tail = whole.shape[1:]
    per_group = facts.num_heads // facts.num_kv_heads * facts.head_dim
    all_sizes = (per_group, facts.head_dim, facts.head_dim)
    sizes = [all_sizes[part] for part in rule.parts]
    parts = whole.reshape(facts.num_kv_heads, sum(sizes), *tail).split(sizes, dim=1)
    return [part.flatten(0, 1) for part in parts]


_SPLITS: dict[type[Rule], _Split] = {
    Replicated: _Split(
        lambda rule, tensors, facts, rank, size: tensors[0],
        lambda rule, shards, facts: [shards[0]],
    ),
    Stacked: _Split(
        lambda rule, tensors, facts, rank, size: torch.cat(tensors),
        lambda rule, shards, facts: list(shards[0].chunk(len(rule.hugging_face))),
    ),
    Row: _Split(
        lambda rule, tensors, facts, rank, size: tensors[0].chunk(size, dim=1)[rank],
        lambda rule, shards, facts: [torch.cat(shards, dim=1)],
    ),
    Column: _Split(
        lambda rule, tensors, facts, rank, size: tensors[0].chunk(size)[rank],
        lambda rule, shards, facts: [torch.cat(shards)],
    ),
    Vocab: _Split(_shard_vocab, lambda rule, shards, facts: [torch.cat(shards)[: facts.vocab_size]]),
    Gated: _Split(
        lambda rule, tensors, facts, rank, size: torch.cat([tensor.chunk(size)[rank] for tensor in tensors]),
        _join_gated,
    ),
    QKV: _Split(_shard_qkv, _join_qkv),
}
