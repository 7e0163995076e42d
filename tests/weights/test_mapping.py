"""What is loaded comes out again bit for bit, on every layout; every parameter and every tensor has one rule."""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from rollout_models import CONFIGS
from safetensors.torch import load_file
from tiny import DENSE, MIXTURE
from torch import Tensor

from pentad.families.blocks import model_rules
from pentad.families.catalog import FAMILIES, family_named
from pentad.families.facts import ModelFacts
from pentad.families.rules import QKV, Column, Experts, Gated, Replicated, Row, Rule, Vocab
from pentad.layout import Layout
from pentad.weights.mapping import WeightMapping
from pentad.weights.sharding import join, shard

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
    "column": (Column("m", ("up",)), [(16, 6)]),
    "replicated": (Replicated("m", ("norm",)), [(6,)]),
    "experts": (Experts("m", ("gate", "up"), Gated("m", ("gate", "up"))), [(16, 6), (16, 6)]),
    "vocab": (Vocab("m", ("embed",)), [(97, 6)]),
}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", RULES)
def test_join_undoes_shard(kind, size):
    rule, shapes = RULES[kind]
    facts = ModelFacts(
        "llama", 1, 6, num_heads=8, num_kv_heads=4, ffn_hidden_size=16, vocab_size=97, head_dim=8, tied=False
    )
    whole = [torch.randn(shape) for shape in shapes]
    shards = [shard(rule, whole, facts, rank, size) for rank in range(size)]
    assert len({part.shape for part in shards}) == 1, "ranks hold different shapes"
    for one, other in zip(join(rule, shards, facts), whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("has_experts", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_names_nothing_twice(name, has_experts):
    for tied in (True, False):
        rules: tuple[Rule, ...] = (*model_rules(tied), *family_named(name).layer_rules(has_experts))
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


def test_rules_are_those_of_the_layer():
    """The first layer of this model is dense, the second has experts."""
    mapping = WeightMapping(MIXTURE["qwen3_moe_dense"], None)
    for layer, held, missing in ((0, "linear_fc1.weight", "router.weight"), (1, "router.weight", "linear_fc1.weight")):
        assert mapping.rule_of(f"decoder.layers.{layer}.mlp.{held}")[1]
        with pytest.raises(KeyError, match="has no rule"):
            mapping.rule_of(f"decoder.layers.{layer}.mlp.{missing}")
