"""Predicted memory: the parts that are exact, and how the others must move."""

from dataclasses import replace

import pytest

from pentad.families.known_models import known_models
from pentad.layout import Layout, parse_allocation
from pentad.layout.validate import check_layout
from pentad.planning.coefficients import DEFAULT, GIB
from pentad.planning.memory import (
    COMPONENTS,
    RankMemory,
    Workload,
    layer_activations,
    predict_memory,
    predict_peak,
)

MODELS = known_models()
WORK = Workload(tokens=16384, microbatches=16)


def peak(name: str, sizes: str, work: Workload = WORK) -> RankMemory:
    return predict_peak(MODELS[name], parse_allocation(f"megatron:{sizes}").trainer.layout, work)


def test_state_of_one_rank() -> None:
    parts = peak("Qwen/Qwen2.5-3B", "d1").components
    parameters = 3_085_938_688
    assert parts["weights"] == 2 * parameters
    assert parts["gradients"] == 4 * parameters
    assert parts["optimizer"] == 12 * parameters
    fp32 = peak("Qwen/Qwen2.5-3B", "d1", replace(WORK, dtype="fp32")).components
    assert (fp32["weights"], fp32["optimizer"]) == (4 * parameters, 8 * parameters)


def test_optimizer_is_divided_by_replicas_of_each_kind() -> None:
    one, more = peak("Qwen/Qwen2.5-3B", "d1"), peak("Qwen/Qwen2.5-3B", "d4c2")
    assert more.components["optimizer"] == one.components["optimizer"] // 8
    assert more.components["gradients"] == one.components["gradients"]
    mixture = peak("Qwen/Qwen3-30B-A3B", "d8e4")
    dense, expert = mixture.parameters.dense, mixture.parameters.expert
    assert mixture.components["optimizer"] == int(12 * (dense / 8 + expert / 2))


def test_one_dense_layer_term_by_term() -> None:
    facts = MODELS["Qwen/Qwen2.5-3B"]
    tokens, hidden, query, key, inner = 16384, 2048, 2048, 256, 11008
    # Two norms in and out; rotated queries, keys, values, output, sine and cosine; five copies of the inner width.
    copies = 4 * hidden + 2 * query + 2 * key + 4 * 128 + 5 * inner
    assert layer_activations(facts, Layout(), WORK, 0) == tokens * (2 * copies + 4 * 16)
    assert layer_activations(facts, Layout(), replace(WORK, recompute="full"), 0) == tokens * 2 * hidden


def test_one_expert_layer_term_by_term() -> None:
    facts = MODELS["Qwen/Qwen3-30B-A3B"]
    tokens, hidden, query, key, rows = 16384, 2048, 4096, 512, 16384 * 8
    attention = 4 * hidden + 2 * query + 2 * key + 4 * 128 + query + (query + 2 * key)
    bytes_ = tokens * (2 * attention + 4 * 32 + 13 * 128) + rows * (2 * (hidden + 5 * 768) + 24)
    assert layer_activations(facts, Layout(), WORK, 0) == bytes_


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-30B-A3B"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_more_ranks_never_need_more(name: str, recompute: str) -> None:
    work, compared = replace(WORK, recompute=recompute), 0
    for base in ("", "p2", "d2", "c2"):
        for letter in "tdc":
            if letter in base:
                continue
            sizes = [1, 2, 4]
            layouts = [parse_allocation(f"megatron:{base}{letter}{size}").trainer.layout for size in sizes]
            legal = [layout for layout in layouts if not check_layout(MODELS[name], layout)]
            peaks = [predict_peak(MODELS[name], layout, work).allocated for layout in legal]
            assert peaks == sorted(peaks, reverse=True), (base, letter, peaks)
            compared += len(peaks) - 1
    assert compared >= 12


def test_recomputing_keeps_less() -> None:
    none, full = (peak("Qwen/Qwen2.5-7B", "d8", replace(WORK, recompute=kind)) for kind in ("none", "full"))
    assert full.components["activations"] < none.components["activations"] / 10
    assert full.total < none.total


def test_pipeline_keeps_the_microbatches_in_flight() -> None:
    facts = MODELS["Qwen/Qwen2.5-32B"]
    layout = Layout(tensor=8, pipeline=4)
    many, one = (predict_memory(facts, layout, replace(WORK, microbatches=number)) for number in (16, 1))
    layers = [len(stage) for stage in ((range(16)), range(17), range(17), range(14))]
    for stage, count in enumerate(layers[:3]):
        each = count * layer_activations(facts, layout, WORK, 0)
        assert many[stage].components["activations"] == pytest.approx((4 - stage) * each)
        assert one[stage].components["activations"] == pytest.approx(each)
    assert many[3].components["logits"] > 0 == many[0].components["logits"]
    interleaved = predict_memory(facts, replace(layout, virtual=2), WORK)
    assert interleaved[0].components["activations"] > many[0].components["activations"]


def test_peak_is_the_largest_of_all_stages() -> None:
    for name, sizes in (("Qwen/Qwen2.5-32B", "t8p4v2"), ("Qwen/Qwen3-30B-A3B", "d2p8e2"), ("Qwen/Qwen2.5-7B", "p4")):
        layout = parse_allocation(f"megatron:{sizes}").trainer.layout
        ranks = predict_memory(MODELS[name], layout, WORK)
        assert predict_peak(MODELS[name], layout, WORK).total == max(rank.total for rank in ranks)
        for rank in ranks:
            assert tuple(rank.components) == COMPONENTS and min(rank.components.values()) >= 0
            assert rank.allocated == rank.total - rank.components["overhead"]


def test_few_tokens_make_the_optimizer_step_the_peak() -> None:
    parts = peak("Qwen/Qwen2.5-7B", "d1", Workload(tokens=16)).components
    assert (parts["activations"], parts["logits"]) == (0, 0)
    assert parts["buffers"] == int(DEFAULT.step * 7_615_616_512)


def test_reference_and_engine_are_counted() -> None:
    plain = peak("Qwen/Qwen2.5-7B", "d8")
    more = peak("Qwen/Qwen2.5-7B", "d8", replace(WORK, reference=True, engine_bytes=3 * GIB))
    assert more.components["reference"] == plain.components["weights"]
    assert more.allocated == plain.allocated + plain.components["weights"] + 3 * GIB


def test_every_coefficient_matters() -> None:
    from dataclasses import fields

    cases = [
        ("Qwen/Qwen3-30B-A3B", "d4t2p2c2e2", WORK),
        ("Qwen/Qwen1.5-MoE-A2.7B", "t2", WORK),
        ("Qwen/Qwen2.5-7B", "d2", WORK),
        ("Qwen/Qwen2.5-7B", "d2", replace(WORK, tokens=16)),
        ("Qwen/Qwen2.5-72B", "t4p8", WORK),
        ("Qwen/Qwen3-30B-A3B", "p8", WORK),
    ]

    def totals(table):
        for name, sizes, work in cases:
            layout = parse_allocation(f"megatron:{sizes}").trainer.layout
            yield [rank.total for rank in predict_memory(MODELS[name], layout, work, table)]

    before = list(totals(DEFAULT))
    for item in fields(DEFAULT):
        changed = replace(DEFAULT, **{item.name: getattr(DEFAULT, item.name) * 1.5})
        assert list(totals(changed)) != before, f"{item.name} changes nothing"
