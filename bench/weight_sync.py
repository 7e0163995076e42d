"""Weights from a trainer's process to vLLM on the same GPU: seconds and GB/s, beside the rate of a copy on that GPU.

    python bench/weight_sync.py                              # every case
    python bench/weight_sync.py --cases 1.5b 7b --json result.json
    NCCL_NVLS_ENABLE=0 python bench/weight_sync.py --apart --cases 7b               # vLLM on a second GPU, over NCCL
    NCCL_NVLS_ENABLE=0 python bench/weight_sync.py --apart --plain --cases 7b       # a receiver without vLLM there

Random weights under their Hugging Face names, in bfloat16; the trainer is this process, the engine vLLM's core. Each
round is one publication: packed into two buffers, loaded by vLLM's own loader and, with the certificate, summed up on
both sides. The first round records where the weights go and is told apart. GB/s counts the model's bytes once; the copy
rate counts bytes that were copied, each read once and written once. With `--apart` the engine's processes see the
second GPU alone, the first round makes the process group, and the copy is one from GPU to GPU.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from pentad.engines.vllm.arguments import VllmSetup
from pentad.engines.vllm.engine import VllmEngine
from pentad.weights.mapping import expected_shapes
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.collective import CollectiveTransport
from pentad.weights.transport.protocol import DirectChannel, Transport

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


class Engine(Protocol):
    """What is published to."""

    timings: Mapping[str, float]

    async def load_weights(self, channel: DirectChannel, version: int) -> Mapping[str, int]: ...

    async def close(self) -> None: ...


def _take(asked: Any, answers: Any) -> None:
    """A receiver without an engine: copies what comes into tensors of its own."""
    held: dict[str, Tensor] = {}
    while (channel := asked.get()) is not None:
        begin = time.perf_counter()
        for bucket in channel.reception(torch.device("cuda", 0), "receiver").buckets():
            for name, tensor in bucket:
                held.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
        torch.cuda.synchronize()
        answers.put(time.perf_counter() - begin)


class PlainReceiver:
    """A process that takes weights and does nothing with them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.timings: Mapping[str, float] = {}
        self._asked, self._answers = context.Queue(), context.Queue()
        self._process = context.Process(target=_take, args=(self._asked, self._answers), daemon=True)
        self._process.start()

    async def load_weights(self, channel: DirectChannel, version: int) -> Mapping[str, int]:
        self._asked.put(channel)
        self.timings = {"load": await asyncio.to_thread(self._answers.get), "certify": 0.0}
        return {}

    async def close(self) -> None:
        self._asked.put(None)
        self._process.join()


@contextmanager
def visible(gpu: int | None) -> Generator[None]:
    """Processes that are started inside see this one of the visible GPUs alone; None: all."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu) if before is None else before.split(",")[gpu]
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def copy_rate(target_device: str) -> float:
    """GB/s of a copy on the GPU, or to another one, 8 GiB at a time; the median of ten."""
    source = torch.randint(127, (8 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source, device=target_device)
    times = []
    for _ in range(13):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return source.numel() / median(times[3:]) / 1e9


async def publish(engine: Engine, transport: Transport, tensors: dict[str, Tensor], version: int) -> float:
    """One publication; returns its seconds."""
    begin = time.perf_counter()
    channel = transport.open(version)
    sending = asyncio.create_task(asyncio.to_thread(channel.send, tensors.items()))
    await asyncio.gather(engine.load_weights(channel, version), sending)
    return time.perf_counter() - begin


def open_transport(apart: bool, bucket_bytes: int, certify: bool) -> LocalTransport | CollectiveTransport:
    """To one receiver."""
    if apart:
        return CollectiveTransport("nccl", "127.0.0.1", torch.bfloat16, bucket_bytes, certify=certify)
    return LocalTransport("ipc", torch.bfloat16, bucket_bytes, certify=certify)


def measure(name: str, rounds: int, bucket_bytes: int, apart: bool, plain: bool) -> dict[str, Any]:
    """One case."""
    config = CASES[name]
    shapes = expected_shapes(config)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        passed = {"enforce_eager": True, "kv_cache_memory_bytes": 2 << 30}
        setup = VllmSetup(
            Path(folder),
            None,
            longest=512,
            is_mixture="Moe" in config.architectures[0],
            shares_gpu=not apart,
            passed=passed,
        )
        begin = time.perf_counter()
        with visible(1 if apart else None):
            engine = PlainReceiver() if plain else VllmEngine(setup, shapes, torch.cuda.mem_get_info()[1])
        started = time.perf_counter() - begin
        tensors = {key: torch.randn(shape, device="cuda", dtype=torch.bfloat16) for key, shape in shapes.items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        result: dict[str, Any] = {"GB": size / 1e9, "tensors": len(shapes), "start_s": started}
        version = 0
        for certify in (True, False):
            transport = open_transport(apart, bucket_bytes, certify)
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
    parser.add_argument("--apart", action="store_true", help="the engine has the second GPU, and NCCL is used")
    parser.add_argument("--plain", action="store_true", help="with --apart: a receiver without vLLM")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.plain and not arguments.apart:
        parser.error("--plain needs --apart")
    rate = copy_rate("cuda:1" if arguments.apart else "cuda:0")
    torch.cuda.empty_cache()
    results: dict[str, Any] = {"copy_GB/s": rate}
    where = "from GPU to GPU" if arguments.apart else "on the GPU"
    print(f"copy {where}: {rate:.0f} GB/s (read once, written once)", flush=True)
    for name in arguments.cases:
        results[name] = found = measure(
            name, arguments.rounds, arguments.bucket_mib << 20, arguments.apart, arguments.plain
        )
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
