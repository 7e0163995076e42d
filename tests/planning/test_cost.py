"""Predicted times: near what was measured, and moved by what moves them in practice."""

import re
from dataclasses import replace

import pytest

from pentad.errors import UserError
from pentad.families.known_models import known_models
from pentad.layout import parse_allocation
from pentad.layout.validate import check_layout
from pentad.planning.coefficients import GIB
from pentad.planning.cost import PARTS, StepTime, predict_time
from pentad.planning.gpus import GPUS, gpu_of
from pentad.planning.memory import Workload, predict_peak
from pentad.planning.rank import Candidate, legal_layouts, rank_layouts

MODELS = known_models()
H200 = gpu_of("h200")
WORK = Workload(tokens=16384, microbatches=16)


def step(name: str, sizes: str, work: Workload = WORK, gpu: str = "h200") -> StepTime:
    return predict_time(MODELS[name], parse_allocation(f"megatron:{sizes}").trainer.layout, work, gpu_of(gpu))


def test_measured_on_one_h200() -> None:
    # 646 ms forward and backward for 16,384 tokens in sequences of 838, 95 ms for the unfused optimizer.
    time = step("Qwen/Qwen2.5-3B", "d1", Workload(16384, microbatches=1, sequence=838))
    assert time.parts["compute"] == pytest.approx(0.646, rel=0.15)
    # Qwen3-30B-A3B cut to 6 layers: 235 ms.
    cut = replace(MODELS["Qwen/Qwen3-30B-A3B"], num_layers=6)
    time = predict_time(cut, parse_allocation("megatron:d1").trainer.layout, Workload(16384, 1, 838), H200)
    assert time.parts["compute"] == pytest.approx(0.235, rel=0.15)


def test_bubble() -> None:
    assert step("Qwen/Qwen2.5-7B", "p4").bubble == pytest.approx(3 / 16)
    assert step("Qwen/Qwen2.5-7B", "p4v2").bubble == pytest.approx(3 / 32)
    assert step("Qwen/Qwen2.5-7B", "d4").bubble == 0


def test_every_second_has_a_name() -> None:
    work = replace(WORK, critic=MODELS["Qwen/Qwen3-30B-A3B"].as_critic())
    time = step("Qwen/Qwen3-30B-A3B", "d2t2p2c2e4", work)
    assert tuple(time.parts) == PARTS and min(time.parts.values()) > 0
    assert time.total == pytest.approx(sum(time.parts.values()))
    assert time.tokens_per_second == pytest.approx(16384 * 16 * 2 / time.total)


def test_a_critic_is_trained_and_scores_before() -> None:
    name = "Qwen/Qwen2.5-7B"
    alone, both = step(name, "t2p2"), step(name, "t2p2", replace(WORK, critic=MODELS[name].as_critic()))
    assert alone.parts["critic"] == 0
    assert {**both.parts, "critic": 0.0} == alone.parts
    # As large a model without its output layer, and a forward pass more.
    assert 1.1 * alone.total < both.parts["critic"] < 4 / 3 * alone.total
    small = step(name, "t2p2", replace(WORK, critic=MODELS["Qwen/Qwen2.5-0.5B"].as_critic()))
    assert small.parts["critic"] < both.parts["critic"] / 4


def test_groups_across_machines_are_slow() -> None:
    name = "Qwen/Qwen2.5-72B"
    inside, across = step(name, "d2t8").parts["tensor"], step(name, "t16").parts["tensor"]
    assert across > 3 * inside
    experts = "Qwen/Qwen3-30B-A3B"
    assert step(experts, "d16e16").parts["expert"] > 3 * step(experts, "d16e8").parts["expert"]


def test_recomputing_costs_time() -> None:
    none, selective, full = (
        step("Qwen/Qwen2.5-7B", "d2t4", replace(WORK, recompute=kind)) for kind in ("none", "selective", "full")
    )
    assert none.parts["compute"] < selective.parts["compute"] < full.parts["compute"]
    assert full.parts["compute"] == pytest.approx(4 / 3 * none.parts["compute"], rel=0.15)
    assert full.parts["tensor"] > none.parts["tensor"]


def test_context_parallel_ranks_exchange_heads_or_gather_keys() -> None:
    seconds = {sizes: step("Qwen/Qwen2.5-7B", sizes).parts["context"] for sizes in ("t2c2", "t4c2")}
    link, layers = H200.nvlink_gbs * 1e9 * 0.75, 28 * WORK.microbatches * 2
    # Half of the tokens: queries, keys, values and the output of the attention; t2 has 14 heads and 2.
    exchanged = 8192 * (2 * 14 + 2 * 2) * 128 * 2
    # All tokens: keys and values; t4 has 1 head of each.
    gathered = 16384 * 2 * 1 * 128 * 2
    assert seconds["t2c2"] == pytest.approx(layers * (exchanged / 2 / link + 20e-6))
    assert seconds["t4c2"] == pytest.approx(layers * (gathered / 2 / link + 20e-6))


def test_faster_gpus_are_faster() -> None:
    times = [step("Qwen/Qwen2.5-7B", "d4t2", gpu=name).total for name in ("a100", "h100", "b200")]
    assert times == sorted(times, reverse=True)


def test_unknown_gpu() -> None:
    with pytest.raises(UserError) as error:
        gpu_of("h20")
    assert "did you mean h200?" in error.value.fix
    assert gpu_of("H100") is GPUS["h100"]


def test_legal_layouts_are_legal_and_complete() -> None:
    facts = MODELS["Qwen/Qwen3-30B-A3B"]
    layouts = list(legal_layouts(facts, 16, H200))
    assert len(layouts) == len(set(layouts))
    for layout in layouts:
        assert layout.world == 16 and not check_layout(facts, layout)
    texts = {str(layout) for layout in layouts}
    assert {"d16", "d16e16", "d2t8", "t8p2", "d4t2p2e4", "t4p2c2e2x4", "p4v2c4"} <= texts
    # 14 heads and 2 key/value heads: nothing but t1, t2 and t14 divides the heads, and t14 not the projection.
    odd = legal_layouts(MODELS["Qwen/Qwen2.5-0.5B"], 14, H200)
    assert {layout.tensor for layout in odd} == {1, 2}


def test_legal_layouts_split_every_expert_evenly() -> None:
    facts = replace(MODELS["Qwen/Qwen1.5-MoE-A2.7B"], shared_ffn_hidden_size=66, moe_ffn_hidden_size=1410)
    assert {layout.tensor for layout in legal_layouts(facts, 8, H200)} == {1, 2}
    layouts = list(legal_layouts(replace(facts, shared_ffn_hidden_size=5632), 8, H200))
    assert {layout.tensor for layout in layouts} == {1, 2, 4, 8}
    assert {layout.expert_tensor for layout in layouts} == {1, 2}


def test_ranking() -> None:
    candidates = rank_layouts(MODELS["Qwen/Qwen2.5-7B"], 8, gpu_of("h100"), Workload(16384), 16384 * 32)
    fitting = [item for item in candidates if item.fits]
    others = candidates[len(fitting) :]
    assert fitting and others and not any(item.fits for item in others)
    assert [item.time.total for item in fitting] == sorted(item.time.total for item in fitting)
    assert [item.excess for item in others] == sorted(item.excess for item in others)
    limit = GPUS["h100"].memory_gib * GIB
    assert all((item.peak.total <= limit) is item.fits for item in candidates)
    for item in candidates:
        done = item.microbatches * item.layout.data * 16384
        assert done >= 16384 * 32 and (item.layout.virtual == 1 or item.microbatches % item.layout.pipeline == 0)
        assert item.time.tokens_per_second * item.time.total == pytest.approx(16384 * 32)
    assert fitting[0].reason(fitting[0]).startswith("fastest")
    assert all(item.reason(fitting[0]).startswith("+") for item in fitting[1:])
    assert all("GiB too much" in item.reason() for item in others)


@pytest.mark.parametrize(
    ("sizes", "microbatches", "text"),
    [("d8", 64, "of the step is computing; next is "), ("p8", 2, "of the step is waiting in p8; next is computing, ")],
)
def test_reason_names_the_larger_share_first(sizes: str, microbatches: int, text: str) -> None:
    layout = parse_allocation(f"megatron:{sizes}").trainer.layout
    work = Workload(8192, microbatches)
    facts = MODELS["Qwen/Qwen2.5-7B"]
    candidate = Candidate(
        layout, microbatches, predict_time(facts, layout, work, H200), predict_peak(facts, layout, work), excess=0
    )
    reason = candidate.reason(candidate)
    assert text in reason
    first, second = (float(share) for share in re.findall(r"([0-9.]+)%", reason))
    assert first >= second


def test_small_model_is_not_split() -> None:
    candidates = rank_layouts(MODELS["Qwen/Qwen2.5-0.5B"], 8, H200, Workload(8192), 8192 * 32)
    assert str(candidates[0].layout) == "d8"
