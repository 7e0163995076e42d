"""Which layouts a model permits, and which allocations this version runs."""

from dataclasses import replace

import pytest

from pentad.errors import UserError
from pentad.families.facts import ModelFacts
from pentad.layout import Layout, parse_allocation
from pentad.layout.validate import Problem, check_layout, check_supported, refuse

SMOL = ModelFacts(
    family="llama",
    num_layers=30,
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    ffn_hidden_size=1536,
    vocab_size=49152,
    head_dim=64,
    tied=True,
)
QWEN = replace(
    SMOL, family="qwen2", num_layers=36, hidden_size=2048, num_heads=16, num_kv_heads=2, ffn_hidden_size=12288
)
MOE = replace(
    QWEN,
    family="qwen3_moe",
    num_heads=32,
    num_kv_heads=4,
    ffn_hidden_size=6144,
    num_experts=128,
    moe_ffn_hidden_size=768,
    experts_per_token=8,
)
SHARED = replace(MOE, family="qwen2_moe", num_heads=16, num_kv_heads=16, shared_ffn_hidden_size=66)

LEGAL = [
    (SMOL, "t3"),
    (SMOL, "d7"),
    (SMOL, "p30"),
    (SMOL, "c3"),
    (SMOL, "c2"),  # 9 heads: keys are gathered
    (QWEN, "t8c4"),
    (replace(QWEN, num_heads=24, num_kv_heads=4), "t2c3"),
    (QWEN, "t8"),  # 2 key/value heads, each on 4 ranks
    (QWEN, "t2c2"),
    (replace(QWEN, vocab_size=151_937), "t16"),  # the vocabulary is padded
    (QWEN, "p18v2"),
    (QWEN, "p5"),  # uneven stages
    (MOE, "d4t2c2p4e16"),
    (MOE, "t4e2x2"),
    (SHARED, "t2"),
    (SHARED, "d4t2e2x4"),  # x does not split the shared expert
]


@pytest.mark.parametrize(("facts", "sizes"), LEGAL)
def test_legal_layouts(facts: ModelFacts, sizes: str) -> None:
    assert check_layout(facts, parse_allocation(f"megatron:{sizes}").trainer.layout) == []


ILLEGAL = [
    (SMOL, "t2", "9 attention heads of llama cannot be split by t2", "use t1 or t3"),
    (QWEN, "t3", "16 attention heads of qwen2 cannot be split by t3", "use t2 or t4"),
    (QWEN, "t32", "16 attention heads", "use t16"),
    (replace(QWEN, num_heads=12, num_kv_heads=4), "t6", "4 key/value heads of qwen2 can neither", "use t4 or t12"),
    (replace(QWEN, ffn_hidden_size=11009), "t2", "feed-forward width 11009", "use t1"),
    (SMOL, "t2c3", "9 attention heads of llama cannot be split by t2", "use t1 or t3"),
    (SMOL, "p31", "30 layers, too few for p31 stages", "use p30 or less"),
    (SMOL, "p15v3", "too few for p15 * v3 = 45 pieces", "use v2 or less"),
    (SMOL, "p16v2", "too few for p16 * v2 = 32 pieces", "leave v out"),
    (QWEN, "d2e2", "qwen2 is a dense model; e2 needs experts", "leave e2 out"),
    (QWEN, "d2x2", "qwen2 is a dense model; x2 needs experts", "leave x2 out"),
    (MOE, "d3e3", "128 experts of qwen3_moe cannot be spread evenly over e3", "use e2 or e4"),
    (SHARED, "t4", "shared expert width 66 of qwen2_moe cannot be split by t4", "use t2"),
    (replace(SHARED, shared_ffn_hidden_size=72), "t16", "shared expert width 72", "use t8"),
    (MOE, "d5x5", "expert width 768 of qwen3_moe cannot be split by x5", "use x4 or x6"),
]


@pytest.mark.parametrize(("facts", "sizes", "cause", "fix"), ILLEGAL)
def test_illegal_layouts(facts: ModelFacts, sizes: str, cause: str, fix: str) -> None:
    problems = check_layout(facts, parse_allocation(f"megatron:{sizes}").trainer.layout)
    assert len(problems) == 1
    assert cause in problems[0].cause
    assert problems[0].fix == fix


def test_suggested_tensor_sizes_are_legal() -> None:
    suggested = 0
    for facts in (SMOL, QWEN, MOE, SHARED):
        for size in range(2, 40):
            for problem in check_layout(facts, Layout(tensor=size)):
                for word in problem.fix.removeprefix("use ").split(" or "):
                    assert check_layout(facts, Layout(tensor=int(word[1:]))) == []
                    suggested += 1
    assert suggested > 100


def test_independent_problems_are_all_found() -> None:
    problems = check_layout(SMOL, parse_allocation("megatron:d2t2p31e2").trainer.layout)
    assert len(problems) == 3
    with pytest.raises(UserError) as error:
        refuse(problems, "llama on megatron:d2t2p31e2")
    assert "3 problems" in error.value.cause and "e2 needs experts" in error.value.cause
    refuse([], "nothing")
    with pytest.raises(UserError) as error:
        refuse([Problem("a", "b")], "it")
    assert (error.value.cause, error.value.fix) == ("it: a", "b")


@pytest.mark.parametrize("text", ["megatron:d2t2", "hf:d4|megatron:d2t2", "hf:d1+megatron:t2", "vllm:d2t2+megatron:t2"])
def test_supported(text: str) -> None:
    assert check_supported(parse_allocation(text)) == []


@pytest.mark.parametrize(
    ("text", "causes", "fix"),
    [
        ("hf:t2|megatron:d2", ["t2 is not possible; hf engines have only d"], "write hf:d2"),
        ("hf:p2|megatron:d2", ["p2 is not possible"], "write hf:d2"),
        ("vllm:p2|megatron:d2", ["p2 is not possible; vllm engines have only d and t"], "write vllm:d2"),
        ("sglang:d1+megatron:d2", ["backend sglang is not available yet"], "write vllm:d1"),
    ],
)
def test_not_supported(text: str, causes: list[str], fix: str) -> None:
    problems = check_supported(parse_allocation(text))
    assert len(problems) == len(causes)
    for problem, cause in zip(problems, causes, strict=True):
        assert cause in problem.cause
    assert fix in problems[0].fix
