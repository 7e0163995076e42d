"""Weights from a trainer's process to vLLM on the same GPU: seconds and GB/s, beside the rate of a copy on that GPU.

    python bench/weight_sync.py                              # every case
    python bench/weight_sync.py --cases 1.5b 7b --json result.json

Random weights under their Hugging Face names, in bfloat16; the trainer is this process, the engine vLLM's core. Each
round is one publication: packed into two buffers, loaded by vLLM's own loader and, with the certificate, summed up on
both sides. The first round records where the weights go and is told apart. GB/s counts the model's bytes once; the copy
rate counts bytes that were copied, each read once and written once.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from pentad.engines.vllm.arguments import VllmSetup
from pentad.engines.vllm.engine import VllmEngine
from pentad.weights.mapping import expected_shapes
from pentad.weights.transport.channel import LocalTransport

QWEN2 = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "architectures": ["Qwen2ForCausalLM"]}
CASES: dict[str, PreTrainedConfig] = {
    "1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True, **QWEN2,
    ),
    "7b": Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, tie_word_embeddings=False, **QWEN2,
    ),
    # Qwen3-30B-A3B with 6 of its 48 layers.
    "30b-a3b-6l": Qwen3MoeConfig(
        hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        norm_topk_prob=True, vocab_size=151936, tie_word_embeddings=False, decoder_sparse_step=1, mlp_only_layers=[],
        architectures=["Qwen3MoeForCausalLM"],
    ),
}  # fmt: skip


def copy_rate() -> float:
    """GB/s of a copy on the GPU, 8 GiB at a time; the median of ten."""
    source = torch.randint(127, (8 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(13):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return source.numel() / median(times[3:]) / 1e9


async def publish(engine: VllmEngine, transport: LocalTransport, tensors: dict[str, Tensor], version: int) -> float:
    """One publication; returns its seconds."""
    begin = time.perf_counter()
    channel = transport.open(version)
    sending = asyncio.create_task(asyncio.to_thread(channel.send, tensors.items()))
    await asyncio.gather(engine.load_weights(channel, version), sending)
    return time.perf_counter() - begin


def measure(name: str, rounds: int, bucket_bytes: int) -> dict[str, Any]:
    """One case."""
    config = CASES[name]
    shapes = expected_shapes(config)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        passed = {"enforce_eager": True, "kv_cache_memory_bytes": 2 << 30}
        setup = VllmSetup(
            Path(folder), None, longest=512, is_mixture="Moe" in config.architectures[0], shares_gpu=True, passed=passed
        )
        begin = time.perf_counter()
        engine = VllmEngine(setup, shapes, torch.cuda.mem_get_info()[1])
        started = time.perf_counter() - begin
        tensors = {key: torch.randn(shape, device="cuda", dtype=torch.bfloat16) for key, shape in shapes.items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        result: dict[str, Any] = {"GB": size / 1e9, "tensors": len(shapes), "start_s": started}
        version = 0
        for certify in (True, False):
            transport = LocalTransport("ipc", torch.bfloat16, bucket_bytes, certify=certify)
            seconds, parts = [], []
            for _ in range(rounds + 1):
                version += 1
                seconds.append(asyncio.run(publish(engine, transport, tensors, version)))
                parts.append(dict(engine.timings))
            if certify:
                result["first_s"] = seconds[0]
            kind = "certified" if certify else "plain"
            result[f"{kind}_s"] = median(seconds[1:])
            result[f"{kind}_GB/s"] = size / median(seconds[1:]) / 1e9
            result[f"{kind}_parts_s"] = {key: median(part[key] for part in parts[1:]) for key in parts[0]}
            transport.close()
        asyncio.run(engine.close())
    return result


def main() -> None:
    """Run the cases, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, default=1536)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rate = copy_rate()
    torch.cuda.empty_cache()
    results: dict[str, Any] = {"copy_GB/s": rate}
    print(f"copy on the GPU: {rate:.0f} GB/s (read once, written once)", flush=True)
    for name in arguments.cases:
        results[name] = found = measure(name, arguments.rounds, arguments.bucket_mib << 20)
        torch.cuda.empty_cache()
        print(
            f"{name}: {found['GB']:.2f} GB in {found['tensors']} tensors; certified {found['certified_s']:.3f} s "
            f"({found['certified_GB/s']:.0f} GB/s, {found['certified_GB/s'] / rate:.0%} of the copy rate), plain "
            f"{found['plain_s']:.3f} s ({found['plain_GB/s']:.0f} GB/s), first {found['first_s']:.2f} s; of the "
            f"certified round loading {found['certified_parts_s']['load']:.3f} s, summing up "
            f"{found['certified_parts_s']['certify']:.3f} s; engine started in {found['start_s']:.0f} s",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
