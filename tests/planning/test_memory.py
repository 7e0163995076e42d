"""Predicted memory: the parts that are exact, and how the others must move."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.families.known_models import known_models
from pentad.layout import Layout, parse_allocation
from pentad.layout.validate import check_layout
from pentad.planning.coefficients import DEFAULT
from pentad.planning.engine import EngineWork, predict_engine
from pentad.planning.least import check_memory
from pentad.planning.memory import (
    COMPONENTS,
    RankMemory,
    Workload,
    layer_activations,
    predict_memory,
    predict_peak,
)
from pentad.record.machine import gpus_here
from pentad.run.gpu_memory import check_gpus

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


def test_a_critic_is_held_with_its_optimizer() -> None:
    name = "Qwen/Qwen2.5-3B"
    critic = MODELS[name].as_critic()
    alone, both = peak(name, "d1"), peak(name, "d1", replace(WORK, critic=critic))
    # The decoder and the input embedding, and one row in place of the output layer, which is tied there.
    parameters = alone.parameters.total + MODELS[name].hidden_size
    assert both.components["critic"] == 18 * parameters
    # They take turns, and the policy has logits besides.
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "buffers"):
        assert both.components[part] == alone.components[part]
    larger = peak("Qwen/Qwen2.5-0.5B", "d1", replace(WORK, critic=MODELS["Qwen/Qwen2.5-7B"].as_critic()))
    assert larger.components["activations"] > 2 * peak("Qwen/Qwen2.5-0.5B", "d1").components["activations"]
    allocation = parse_allocation("megatron:d1")
    assert check_memory(MODELS[name], allocation, "bf16", None, 80.0) == []
    (problem,) = check_memory(MODELS[name], allocation, "bf16", None, 80.0, critic=critic)
    assert "needs at least 103.5 GiB" in problem.cause
    apart = parse_allocation("megatron:d1+megatron[critic]:d1")
    assert check_memory(MODELS[name], apart, "bf16", None, 80.0, critic=critic) == []
    (problem,) = check_memory(MODELS["Qwen/Qwen2.5-0.5B"], apart, "bf16", None, 40.0, critic=critic)
    assert problem.cause.startswith("megatron[critic]:d1 needs at least 51.7 GiB")


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


def test_gathered_keys_and_values_term_by_term() -> None:
    """28 heads on t4c2: 7 heads of queries and 1 of keys on each rank, which has the keys of all tokens."""
    facts, layout = MODELS["Qwen/Qwen2.5-7B"], Layout(tensor=4, context=2)
    tokens, hidden, query, key, inner = 16384, 3584, 7 * 128, 128, 18944
    own = 4 * hidden // 4 + 2 * query + query + 4 * 128 + 5 * inner // 4
    expected = tokens // 2 * (2 * own + 4 * 7) + tokens * 2 * 2 * key
    assert layer_activations(facts, layout, WORK, 0) == expected
    # Recomputed, they are gathered again; the projections that go in are kept instead.
    selective = layer_activations(facts, layout, replace(WORK, recompute="selective"), 0)
    assert selective == tokens // 2 * 2 * (own - 4 * 128 + 2 * key)
    # With one more key/value head on each rank, that much more.
    wider = layer_activations(replace(facts, num_kv_heads=8, num_heads=36), layout, WORK, 0)
    same = layer_activations(replace(facts, num_kv_heads=4, num_heads=36), layout, WORK, 0)
    assert wider - same == tokens * 2 * 2 * key


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
    facts = MODELS["Qwen/Qwen2.5-7B"]
    engine = predict_engine(facts, parse_allocation("hf:d8|megatron:d8").components[0], EngineWork(8, 1024))
    more = peak("Qwen/Qwen2.5-7B", "d8", replace(WORK, reference=True, engine=engine))
    weights, cache = plain.components["weights"], 28 * 2 * 4 * 128 * 2 * 8 * 1024
    assert more.components["reference"] == more.components["engine"] == weights
    assert more.components["cache"] == cache
    assert more.allocated == plain.allocated + 2 * weights + cache


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
        engine = parse_allocation("hf:d1+megatron:d1").components[0]
        yield [predict_engine(MODELS["Qwen/Qwen2.5-7B"], engine, EngineWork(), table).total]

    before = list(totals(DEFAULT))
    for item in fields(DEFAULT):
        changed = replace(DEFAULT, **{item.name: getattr(DEFAULT, item.name) * 1.5})
        assert list(totals(changed)) != before, f"{item.name} changes nothing"


def test_least_memory_of_a_run() -> None:
    """Weights, gradients, optimizer and the engines' weights and caches, and nothing that might be less."""
    facts, gib = MODELS["Qwen/Qwen2.5-7B"], 2**30
    parameters = 7_615_616_512
    trainer, weights = 18 * parameters / gib, 2 * parameters / gib
    cache = 28 * 2 * 4 * 128 * 2 * 64 * 256 / gib
    work = EngineWork(sequences=64, tokens=200)  # allocated in steps of 128

    def causes(allocation: str, memory_gib: float) -> list[str]:
        return [p.cause for p in check_memory(facts, parse_allocation(allocation), "bf16", work, memory_gib)]

    assert causes("hf:d1|megatron:d1", trainer + weights + cache + 0.01) == []
    assert len(causes("hf:d1|megatron:d1", trainer + weights + cache - 0.01)) == 1
    assert causes("hf:d1+megatron:d1", trainer + 0.01) == []
    assert "megatron:d1 needs at least 127.7 GiB" in causes("hf:d1+megatron:d1", trainer - 0.01)[0]
    (cause,) = causes("hf:d1+megatron:t4p4", weights + cache - 0.01)
    assert cause.startswith("hf:d1 needs at least")
    assert causes("vllm:t4+megatron:t4p4", weights) == []


def test_a_run_that_cannot_fit_is_refused_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nvidia-smi of a machine with 40 GPUs, the last of 16,380 MiB."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in $(seq 39); do echo 'Tesla T4, 16384'; done; echo 'Tesla T4, 16380'\n")
    tool.chmod(0o755)
    settings = RunSettings.model_validate(
        {
            "experiment": {"name": "a"},
            "model": {"path": "m"},
            "data": {"train": "t"},
            "trainer": {"total_steps": 1},
        }
    )
    facts, allocation = MODELS["Qwen/Qwen2.5-14B"], parse_allocation("hf:d1+megatron:t8p4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if not gpus_here():
        check_gpus(settings, facts, allocation)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"needs at least .* GiB on each GPU, which have 16\.0 GiB"):
        check_gpus(settings, facts, allocation)
    with pytest.raises(UserError, match=r"needs 41 GPUs; this machine has 40"):
        check_gpus(settings, facts, parse_allocation("hf:d1+megatron:t8p5"))
