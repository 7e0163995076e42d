"""What is loaded comes out again bit for bit, on every layout; every parameter and every tensor has one rule."""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from rollout_models import CONFIGS
from safetensors.torch import load_file
from tiny import DENSE
from torch import Tensor

from pentad.layout import Layout
from pentad.weights.families import FAMILIES
from pentad.weights.geometry import Geometry
from pentad.weights.mapping import WeightMapping
from pentad.weights.rules import QKV, Gated, Row, Rule, Vocab

# The vocabulary of 97 is not divided by 4, so the last rank holds padding; tests/verify has all layouts.
LAYOUTS = [Layout(), Layout(tensor=4)]


def round_trip(rank: Rank, directories: list[Path]) -> list[list[tuple[str, Tensor]]]:
    trainers = [rank.trainer(directory, optimizer_steps=None) for directory in directories]
    return [[(name, value.clone()) for name, value in trainer.weights()] for trainer in trainers]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_load_then_export_is_exact(layout, tiny_models):
    directories = [tiny_models(name).directory for name in DENSE]
    for exports in run_on(layout, round_trip, directories):
        for directory, exported in zip(directories, exports, strict=True):
            stored = load_file(directory / "model.safetensors")
            assert sorted(name for name, _ in exported) == sorted(stored), directory.name
            for name, value in exported:
                assert value.dtype == stored[name].dtype
                assert torch.equal(value, stored[name]), f"{directory.name}: {name}"


RULES = {
    "qkv weight": (QKV("m", ("q", "k", "v")), [(64, 6), (32, 6), (32, 6)]),
    "qkv bias": (QKV("m", ("q", "k", "v")), [(64,), (32,), (32,)]),
    "gated": (Gated("m", ("gate", "up")), [(16, 6), (16, 6)]),
    "row": (Row("m", ("down",)), [(6, 16)]),
    "vocab": (Vocab("m", ("embed",)), [(97, 6)]),
}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", RULES)
def test_join_undoes_shard(kind, size):
    rule, shapes = RULES[kind]
    geometry = Geometry(layers=1, hidden=6, heads=8, kv_heads=4, head_dim=8, ffn=16, vocab_size=97, tied=False)
    whole = [torch.randn(shape) for shape in shapes]
    shards = [rule.shard(whole, geometry, rank, size) for rank in range(size)]
    assert len({shard.shape for shard in shards}) == 1, "ranks hold different shapes"
    for one, other in zip(rule.join(shards, geometry), whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_names_nothing_twice(family):
    for tied in (True, False):
        rules: tuple[Rule, ...] = FAMILIES[family].rules(tied)
        megatron = [rule.megatron for rule in rules]
        assert len(set(megatron)) == len(megatron)
        names = [
            name
            for rule in rules
            if not (tied and rule.megatron == "output_layer.weight")
            for name in rule.hugging_face
        ]
        assert len(set(names)) == len(names)


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match=r"decoder\.layers\.3\.mlp\.novelty has no rule in family qwen2"):
        WeightMapping(CONFIGS["qwen2"], None).rule_of("decoder.layers.3.mlp.novelty")
