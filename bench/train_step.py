"""One training step at real model sizes: peak memory against `pentad plan`'s prediction, time, tokens/s, MFU.

    python bench/train_step.py                       # every case that the GPUs here have room for
    python bench/train_step.py --cases 1.5b-d1 --kernels auto torch --json result.json

Random weights, random tokens. A step is `--microbatches` full packs a data-parallel rank (16,384 tokens, in sequences
of 512 to 1,536), forward, backward and AdamW. Times are medians of `--steps` steps after two that warm up; the forward
pass alone is that of log-probs. `--profile FOLDER` writes a table of the kernels of one step without AdamW.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from pentad.families.hf_config import facts_from_config
from pentad.layout import parse_allocation
from pentad.planning.gpus import gpu_of
from pentad.planning.memory import Workload, predict_memory
from pentad.planning.parameters import flops_per_token
from pentad.verify.processes import RankFailedError, Ranks

if TYPE_CHECKING:
    from pentad.samples.batch import Batch
    from pentad.samples.packing import Plan
    from pentad.trainers.megatron.trainer import Trainer

QWEN2 = {"head_dim": None, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
MODELS: dict[str, PreTrainedConfig] = {
    "tiny": Qwen2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=512, tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "qwen2.5-3b": Qwen2Config(
        hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "qwen2.5-7b": Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, tie_word_embeddings=False,
    ),
    # Qwen3-30B-A3B with 6 of its 48 layers.
    "qwen3-30b-a3b-6l": Qwen3MoeConfig(
        hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=6,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        norm_topk_prob=True, vocab_size=151936, tie_word_embeddings=False, decoder_sparse_step=1, mlp_only_layers=[],
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model under a layout."""

    model: str
    layout: str
    recompute: str = "none"
    tokens: int = 16384
    overrides: dict[str, Any] = field(default_factory=dict)


FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
CASES: dict[str, Case] = {
    "tiny-d1": Case("tiny", "d1", tokens=2048),
    "tiny-t2": Case("tiny", "t2", tokens=2048),
    "1.5b-d1": Case("qwen2.5-1.5b", "d1"),
    "1.5b-d1-full": Case("qwen2.5-1.5b", "d1", "full", overrides=FULL),
    "1.5b-t2": Case("qwen2.5-1.5b", "t2"),
    "1.5b-d2c2": Case("qwen2.5-1.5b", "d2c2"),
    "3b-d1": Case("qwen2.5-3b", "d1"),
    "3b-d4": Case("qwen2.5-3b", "d4"),
    "7b-t4": Case("qwen2.5-7b", "t4"),
    "7b-t2p2": Case("qwen2.5-7b", "t2p2"),
    "7b-t2p2-full": Case("qwen2.5-7b", "t2p2", "full", overrides=FULL),
    "30b6-d4e4": Case("qwen3-30b-a3b-6l", "d4e4"),
    "30b6-d2t2e4": Case("qwen3-30b-a3b-6l", "d2t2e4"),
    "30b6-d1": Case("qwen3-30b-a3b-6l", "d1"),
}


@dataclass(frozen=True)
class Job:
    """What a rank measures.

    Attributes:
        steps: how many are timed.
        kernels: `trainer.kernels`.
        profile: a file for the table of kernels; empty for none.
    """

    case: Case
    microbatches: int
    steps: int
    kernels: Any
    profile: str = ""


def measure(rank: int, meeting: str, job: Job) -> dict[str, Any]:
    """One rank's part of a case: its peak bytes, and median seconds of forward and backward, forward, and AdamW."""
    from pentad.config.schema.megatron import MegatronSettings
    from pentad.config.schema.trainer import TrainerSettings
    from pentad.platform.device import enter_platform
    from pentad.trainers.megatron.parallel import join_ranks, make_groups
    from pentad.trainers.megatron.trainer import Trainer

    case = job.case
    platform = enter_platform(rank)
    layout = parse_allocation(f"megatron:{case.layout}").trainer.layout
    join_ranks(platform, rank, layout.world, meeting, 120)
    try:
        groups = make_groups(layout, 1)
        settings = TrainerSettings(total_steps=10, tokens_per_microbatch=case.tokens, kernels=job.kernels)
        config = MODELS[case.model]
        trainer = Trainer(config, layout, groups, platform, settings, MegatronSettings(transformer=case.overrides), 99)
        with torch.no_grad():
            for _, parameter in trainer.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
        trainer.optimizer.reload_model_params()
        return _measure(trainer, rank, job)
    finally:
        torch.distributed.destroy_process_group()


def _measure(trainer: "Trainer", rank: int, job: Job) -> dict[str, Any]:
    from pentad.algorithms.sft import SFTLoss
    from pentad.config.schema.algorithms import SFTSettings

    platform, groups = trainer.platform, trainer.groups
    batch, plan = _full_packs(job, groups.dp.size())
    loss = SFTLoss(SFTSettings())

    def timed(run: Callable[[], Any]) -> float:
        platform.synchronize()
        start = time.perf_counter()
        run()
        platform.synchronize()
        return time.perf_counter() - start

    def step() -> tuple[float, float]:
        return timed(lambda: trainer.forward_backward(batch, plan, loss)), timed(trainer.step)

    for _ in range(2):
        step()
    if platform.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [step() for _ in range(job.steps)]
    peak = torch.cuda.max_memory_allocated() if platform.is_cuda else 0
    forward = [timed(lambda: trainer.logprobs(batch, plan, 1.0)) for _ in range(job.steps)]
    if job.profile and rank == 0:
        _profile(lambda: trainer.forward_backward(batch, plan, loss), job.profile)
    return {
        "peak": peak, "stage": groups.pp.rank(), "seconds": median(first for first, _ in times),
        "step": median(second for _, second in times), "forward": median(forward), "tokens": batch.num_tokens,
        "microbatches": plan.num_microbatches, "pack": plan.max_tokens_used, "kernels": vars(trainer.kernels),
        "allocation_retries": torch.cuda.memory_stats()["num_alloc_retries"] if platform.is_cuda else 0,
    }  # fmt: skip


def _full_packs(job: Job, ranks: int) -> tuple["Batch", "Plan"]:
    """Random sequences, a quarter of each a prompt, and the plan that puts them into packs without a gap.

    Args:
        ranks: data-parallel ones.
    """
    from pentad.samples.batch import Batch
    from pentad.samples.packing import Plan

    vocabulary = MODELS[job.case.model].vocab_size
    generator = torch.Generator().manual_seed(0)
    packs = [_pack(job.case.tokens, generator) for _ in range(job.microbatches * ranks)]
    batch = Batch.from_sequences(
        [
            (
                torch.randint(vocabulary, (length // 4,), generator=generator),
                torch.randint(vocabulary, (length - length // 4,), generator=generator),
            )
            for pack in packs
            for length in pack
        ]
    )
    numbers = iter(range(batch.num_sequences))
    places = [tuple(next(numbers) for _ in pack) for pack in packs]
    dealt = tuple(tuple(places[first::ranks]) for first in range(ranks))
    return batch, Plan(microbatches=dealt, max_tokens_used=job.case.tokens, balance=1.0)


def _pack(tokens: int, generator: torch.Generator) -> list[int]:
    """Sequences of 512 to 1,536 tokens that fill a pack to the last one."""
    lengths = []
    while (left := tokens - sum(lengths)) > 0:
        length = min(left, int(torch.randint(512, 1537, (1,), generator=generator)))
        lengths.append(left if left - length < 512 else length)
    return lengths


def _profile(run: Callable[[], Any], file: str) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    averages = profile.key_averages()
    kernels = sorted((e for e in averages if e.device_type.name == "CUDA"), key=lambda e: -e.self_device_time_total)
    busy = sum(event.self_device_time_total for event in kernels) / 1e3
    with open(file, "w") as out:
        print(f"wall {wall * 1e3:.1f} ms under the profiler; kernels {busy:.1f} ms", file=out)
        for event in kernels[:60]:
            print(f"{event.self_device_time_total / 1e3:9.3f} ms {event.count:6} {event.key[:150]}", file=out)
        print(averages.table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60), file=out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[name for name in CASES if not name.startswith("tiny")])
    parser.add_argument("--microbatches", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--kernels", nargs="*", choices=["auto", "torch"], default=["auto"])
    parser.add_argument("--profile", default="", help="folder for tables of kernels")
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--json")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    print(
        f"{'case':16} {'kernels':7} {'predicted':>10} {'measured':>10} {'ratio':>6} {'fwd+bwd':>9} {'fwd':>7} "
        f"{'step':>8} {'tok/s/GPU':>10} MFU; fwd+bwd and fwd for each pack of a rank"
    )
    rows = []
    for name in options.cases:
        for kernels in options.kernels:
            layout = parse_allocation(f"megatron:{CASES[name].layout}").trainer.layout
            if layout.world > (gpus or 2):
                print(f"{name:16} needs {layout.world} GPUs")
                continue
            profile = os.path.join(options.profile, f"{name}-{kernels}.txt") if options.profile else ""
            job = Job(CASES[name], options.microbatches, options.steps, kernels, profile)
            # New processes for each case: what an earlier model left in memory would be measured, too.
            try:
                with Ranks(layout.world, "spawn") as ranks:
                    results = ranks.call(measure, layout.world, job, deadline_s=240)
            except RankFailedError as error:
                print(f"{name:16} {kernels:7} failed: {str(error)[-1500:]}", flush=True)
                continue
            rows.append(report(name, kernels, results, gpu_of(options.gpu).tflops["bf16"] * 1e12, bool(gpus)))
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(rows, file, indent=1)


def report(name: str, kernels: str, results: list[dict[str, Any]], peak_flops: float, on_gpus: bool) -> dict[str, Any]:
    """Print the line of a case, and return what is written of it."""
    case = CASES[name]
    layout = parse_allocation(f"megatron:{case.layout}").trainer.layout
    facts = facts_from_config(MODELS[case.model].to_dict())
    first = results[0]
    work = Workload(first["pack"], first["microbatches"], 1024, "bf16" if on_gpus else "fp32", case.recompute)
    predicted = predict_memory(facts, layout, work)
    pairs = [(predicted[result["stage"]].allocated, result["peak"]) for result in results]
    expected, found = max(pairs, key=lambda pair: pair[1])
    seconds, forward, step = (max(result[what] for result in results) for what in ("seconds", "forward", "step"))
    speed = first["tokens"] / seconds / layout.world
    mfu = speed * flops_per_token(facts, 1024) / peak_flops
    ratio = expected / found if found else float("nan")
    packs = first["microbatches"]
    print(
        f"{name:16} {kernels:7} {expected / 2**30:9.2f}G {found / 2**30:9.2f}G {ratio:6.3f} "
        f"{seconds * 1e3 / packs:7.1f}ms {forward * 1e3 / packs:5.1f}ms {step * 1e3:6.1f}ms {speed:10,.0f} {mfu:.1%}",
        flush=True,
    )
    components = dict(predicted[first["stage"]].components)
    return {"case": name, "kernels": kernels, **asdict(case), "ranks": results, "predicted": pairs,
            "components": components, "tokens_per_s_per_gpu": speed, "mfu": mfu}  # fmt: skip


if __name__ == "__main__":
    main()
