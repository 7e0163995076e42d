"""On a GPU steps are replayed as CUDA graphs; the oracle is the same engine on the CPU."""

import asyncio
import logging

import pytest
import torch
from engine_calls import generate, load, samples
from rollout_models import CONFIGS, reference_model

from pentad.engines.hf.engine import EmbeddedEngine
from pentad.weights.checksum import checksum
from pentad.weights.table import WeightTable


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_graphs_sample_what_the_cpu_samples(family, caplog):
    """With new weights too: a graph reads the weights at the addresses that it was captured with."""
    asked = [
        request
        for i, top_p in enumerate((1.0, 1.0, 0.8, 0.6))
        for request in samples(torch.arange(1, 4 + 5 * i), f"r{i}", 8, max_tokens=60, top_p=top_p)
    ]
    engines = [EmbeddedEngine(CONFIGS[family], device=device, batch_size=16) for device in ("cpu", "cuda")]
    with caplog.at_level(logging.WARNING):
        for version in (0, 1):
            weights = list(reference_model(CONFIGS[family], seed=version).named_parameters())
            held = [load(engine, ((name, p.data) for name, p in weights), version) for engine in engines]
            assert held[0] == held[1]
            on_cpu, on_gpu = (generate(engine, asked) for engine in engines)
            for a, b in zip(on_cpu, on_gpu, strict=True):
                assert torch.equal(a.response_tokens, b.response_tokens)
                torch.testing.assert_close(a.response_logprobs, b.response_logprobs, atol=5e-4, rtol=0)
    assert not [record for record in caplog.records if "CUDA graphs" in record.message]


def test_bf16_agrees_with_the_probe_and_sleep_frees_memory():
    model = reference_model(CONFIGS["qwen3"])
    engine = EmbeddedEngine(model.config, dtype=torch.bfloat16, device="cuda", batch_size=64)
    weights = [(name, parameter.data) for name, parameter in model.named_parameters()]
    load(engine, weights, 0)
    asked = samples(torch.arange(1, 20), "r", 64, max_tokens=64)
    completions = generate(engine, asked)
    sequences = [torch.cat([r.prompt_tokens, c.response_tokens]) for r, c in zip(asked, completions, strict=True)]
    scores = asyncio.run(engine.logprobs(sequences))
    differences = torch.cat([s[19:] - c.response_logprobs for s, c in zip(scores, completions, strict=True)])
    assert differences.abs().mean() < 0.05
    held = torch.cuda.memory_allocated()
    asyncio.run(engine.sleep())
    # cuBLAS keeps its workspace; weights at least must be gone.
    assert held - torch.cuda.memory_allocated() >= sum(2 * weight.numel() for weight in model.parameters())
    asyncio.run(engine.wake())
    load(engine, weights, 1)
    assert len(generate(engine, asked)) == 64


def test_checksum_is_that_of_the_cpu():
    model = reference_model(CONFIGS["llama"])
    sums = WeightTable(model).checksums()
    assert WeightTable(model.cuda()).checksums() == sums
    large = torch.arange((1 << 24) + 5, dtype=torch.int32)
    assert checksum(large) == checksum(large.cuda())
