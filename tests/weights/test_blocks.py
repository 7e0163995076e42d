"""Blocks say in numbers what `shard` does with tensors, for every rule, every size and every family."""

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pentad.families.catalog import FAMILIES, family_named
from pentad.families.facts import ModelFacts
from pentad.families.rules import QKV, Column, Experts, Gated, Replicated, Row, Rule, Vocab
from pentad.weights.blocks import Block, blocks_of, cut
from pentad.weights.sharding import shard

KINDS = ("qkv", "qkv bias", "gated", "row", "column", "column bias", "replicated", "vocab", "experts")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Rule, tuple[str, ...], ModelFacts, list[tuple[int, ...]], int]:
    """A rule, the names and shapes of its tensors, facts of a model, and a number of ranks that can share them."""
    size, hidden = draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.integers(1, 7))
    groups, queries = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    # So that the ranks share the rows of queries, keys and values evenly; with few groups, a group spans ranks.
    head = draw(st.integers(1, 3)) * size
    vocabulary = draw(st.integers(1, 40))
    facts = ModelFacts("llama", 1, hidden, groups * queries, groups, 1, vocabulary, head, tied=False)
    rows = draw(st.integers(1, 5)) * size
    kind = draw(st.sampled_from(KINDS))
    names = {"qkv": ("q", "k", "v"), "qkv bias": ("q", "k", "v"), "gated": ("gate", "up"), "experts": ("gate", "up")}
    of_kind = names.get(kind, ("w",))
    rules: dict[str, type[Rule]] = {"qkv": QKV, "qkv bias": QKV, "gated": Gated, "row": Row, "column": Column}
    rules |= {"column bias": Column, "replicated": Replicated, "vocab": Vocab}
    shapes: dict[str, list[tuple[int, ...]]] = {
        "qkv": [(groups * queries * head, hidden), (groups * head, hidden), (groups * head, hidden)],
        "qkv bias": [(groups * queries * head,), (groups * head,), (groups * head,)],
        "gated": [(rows, hidden)] * 2,
        "row": [(hidden, rows)],
        "column": [(rows, hidden)],
        "column bias": [(rows,)],
        "replicated": [draw(st.sampled_from([(hidden,), (rows, hidden)]))],
        "vocab": [(vocabulary, hidden)],
        "experts": [(rows, hidden)] * 2,
    }
    rule = Experts("m", of_kind, Gated("m", of_kind)) if kind == "experts" else rules[kind]("m", of_kind)
    return rule, of_kind, facts, shapes[kind], size


def rectangle(tensor: Tensor, block: Block) -> Tensor:
    return tensor[tuple(slice(at, at + size) for at, size in zip(block.offsets, block.sizes, strict=True))]


@settings(max_examples=300, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_blocks_are_what_shard_moves(case, random):
    rule, names, facts, shapes, size = case
    # No two elements are equal, and none is 0, which padding is.
    first, whole = 1, {}
    for name, shape in zip(names, shapes, strict=True):
        whole[name] = torch.arange(first, first + prod(shape)).view(shape)
        first += prod(shape)
    held = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    for rank in range(size):
        local = shard(rule, list(whole.values()), facts, rank, size)
        flat, written, end = local.flatten(), torch.zeros(local.numel(), dtype=torch.bool), 0
        for block in blocks_of(rule, names, facts, tuple(local.shape), rank, size):
            assert block.start == end and block.shape == tuple(whole[block.name].shape)
            end = block.stop
            pieces = cuts(block, random)
            assert sum(piece.elements for piece in pieces) == block.elements
            for piece in [block, *pieces]:
                part = rectangle(whole[block.name], piece)
                assert part.shape == piece.sizes
                assert torch.equal(flat[piece.start : piece.stop].view(piece.sizes), part)
            written[block.start : block.stop] = True
            rectangle(held[block.name], block).add_(1)
        assert not flat[~written].any(), "what no block holds is padding"
    replicas = size if isinstance(rule, Replicated) else 1
    assert all(bool((count == replicas).all()) for count in held.values())


def cuts(block: Block, random) -> list[Block]:
    """The block in pieces, cut at three places."""
    places = sorted({block.start, block.stop + 1, *(random.randint(block.start - 2, block.stop + 2) for _ in range(3))})
    pieces = []
    for start, stop in pairwise(places):
        parts = cut(block, start, stop)
        assert len(parts) <= 3
        if parts:
            assert parts[0].start == max(start, block.start) and parts[-1].stop == min(stop, block.stop)
        pieces += parts
    return pieces


def test_a_row_is_cut_into_ends_and_whole_rows():
    block = Block("w", (10, 8), (2, 4), (5, 4), start=100)
    assert cut(block, 0, 100) == cut(block, 120, 200) == []
    assert cut(block, 0, 1000) == [block]
    assert cut(block, 101, 103) == [Block("w", (10, 8), (2, 5), (1, 2), 101)]
    assert cut(block, 102, 117) == [
        Block("w", (10, 8), (2, 6), (1, 2), 102),
        Block("w", (10, 8), (3, 4), (3, 4), 104),
        Block("w", (10, 8), (6, 4), (1, 1), 116),
    ]


@pytest.mark.parametrize(
    "rule, shape",
    [
        (QKV("m", ("q", "k", "v")), (31, 6)),
        (Vocab("m", ("embed",)), (48, 6)),
        (Gated("m", ("gate", "up")), (7, 6)),
    ],
)
def test_a_parameter_of_another_shape_is_refused(rule, shape):
    facts = ModelFacts("llama", 1, 6, 4, 2, 16, vocab_size=97, head_dim=4, tied=False)
    with pytest.raises(ValueError, match="rows"):
        blocks_of(rule, rule.hugging_face, facts, shape, 0, 2)


def test_every_kind_of_rule_of_every_family_has_blocks():
    """A new kind of rule that only `sharding` knows would fail in a save."""
    facts = ModelFacts("llama", 1, 6, 4, 2, 16, vocab_size=97, head_dim=4, tied=False)
    shapes = {QKV: (32, 6), Row: (6, 16), Gated: (8, 6), Replicated: (6,), Vocab: (97, 6), Column: (8, 6)}
    for family in FAMILIES:
        for has_experts in (False, True):
            for rule in family_named(family).layer_rules(has_experts):
                kind = type(rule.each if isinstance(rule, Experts) else rule)
                assert blocks_of(rule, rule.hugging_face, facts, shapes[kind], 0, 1), rule.megatron
