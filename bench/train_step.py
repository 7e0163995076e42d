"""One training step at real model sizes: peak memory against `pentad plan`'s prediction, time, tokens/s, MFU.

    python bench/train_step.py                       # every case that the GPUs here have room for
    python bench/train_step.py --cases 1.5b-d1 --json result.json

Random weights, random tokens. A step is `--microbatches` microbatches of `--tokens` packed tokens a data-parallel rank
(sequences of 512 to 1,536), forward, backward and AdamW. The first step warms up, the second is measured.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig, Qwen2Config, Qwen3MoeConfig

from pentad.families.hf_config import facts_from_config
from pentad.layout import parse_allocation
from pentad.planning.gpus import gpu_of
from pentad.planning.memory import Workload, predict_memory
from pentad.planning.parameters import flops_per_token
from pentad.verify.processes import RankFailedError, Ranks

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


def measure(rank: int, meeting: str, case: Case, microbatches: int) -> dict[str, Any]:
    """One rank's part of a case; returns its peak bytes and the seconds of the second step."""
    from pentad.algorithms.sft import SFTLoss
    from pentad.config.schema.algorithms import SFTSettings
    from pentad.config.schema.megatron import MegatronSettings
    from pentad.config.schema.trainer import TrainerSettings
    from pentad.platform.device import enter_platform
    from pentad.samples.batch import Batch
    from pentad.samples.packing import plan_microbatches
    from pentad.trainers.megatron.parallel import join_ranks, make_groups
    from pentad.trainers.megatron.trainer import Trainer

    platform = enter_platform(rank)
    layout = parse_allocation(f"megatron:{case.layout}").trainer.layout
    join_ranks(platform, rank, layout.world, meeting, 120)
    try:
        groups = make_groups(layout, 1)
        settings = TrainerSettings(total_steps=10, tokens_per_microbatch=case.tokens)
        config = MODELS[case.model]
        trainer = Trainer(config, layout, groups, platform, settings, MegatronSettings(transformer=case.overrides), 10)
        with torch.no_grad():
            for _, parameter in trainer.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
        trainer.optimizer.reload_model_params()
        generator = torch.Generator().manual_seed(0)
        lengths = _lengths(case.tokens, microbatches * layout.data, generator)
        vocabulary = config.vocab_size
        batch = Batch.from_sequences(
            [
                (
                    torch.randint(vocabulary, (length // 4,), generator=generator),
                    torch.randint(vocabulary, (length - length // 4,), generator=generator),
                )
                for length in lengths
            ]
        )
        plan = plan_microbatches(batch.lengths, layout.data, case.tokens)
        loss = SFTLoss(SFTSettings())
        times = []
        for _ in range(2):
            if platform.is_cuda:
                torch.cuda.reset_peak_memory_stats()
            platform.synchronize()
            start = time.perf_counter()
            trainer.forward_backward(batch, plan, loss)
            platform.synchronize()
            middle = time.perf_counter()
            trainer.step()
            platform.synchronize()
            times.append((middle - start, time.perf_counter() - middle))
        peak = torch.cuda.max_memory_allocated() if platform.is_cuda else 0
        stage = groups.pp.rank()
        return {
            "peak": peak, "stage": stage, "seconds": times[-1][0], "step": times[-1][1], "tokens": batch.num_tokens,
            "microbatches": plan.num_microbatches, "pack": plan.max_tokens_used,
        }  # fmt: skip
    finally:
        torch.distributed.destroy_process_group()


def _lengths(tokens: int, packs: int, generator: torch.Generator) -> list[int]:
    """Sequences that fill `packs` packs of `tokens` tokens to the last one."""
    lengths = []
    for _ in range(packs):
        left = tokens
        while left > 0:
            length = min(left, int(torch.randint(512, 1537, (1,), generator=generator)))
            length = left if left - length < 512 else length
            lengths.append(length)
            left -= length
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[name for name in CASES if not name.startswith("tiny")])
    parser.add_argument("--microbatches", type=int, default=2)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--json")
    options = parser.parse_args()
    gpus = torch.cuda.device_count()
    peak_flops = gpu_of(options.gpu).tflops["bf16"] * 1e12
    print(
        f"{'case':16} {'predicted':>10} {'measured':>10} {'ratio':>6} {'fwd+bwd':>9} {'step':>8} {'tok/s/GPU':>10} MFU"
    )
    rows = []
    for name in options.cases:
        case = CASES[name]
        layout = parse_allocation(f"megatron:{case.layout}").trainer.layout
        if layout.world > (gpus or 2):
            print(f"{name:16} needs {layout.world} GPUs")
            continue
        facts = facts_from_config(MODELS[case.model].to_dict())
        # New processes for each case: what an earlier model left in memory would be measured, too.
        try:
            with Ranks(layout.world, "spawn") as ranks:
                results = ranks.call(measure, layout.world, case, options.microbatches, deadline_s=240)
        except RankFailedError as error:
            print(f"{name:16} failed: {str(error).splitlines()[0]}", flush=True)
            continue
        first, dtype = results[0], "bf16" if gpus else "fp32"
        work = Workload(first["pack"], first["microbatches"], 1024, dtype, case.recompute)
        predicted = predict_memory(facts, layout, work)
        pairs = [(predicted[result["stage"]].allocated, result["peak"]) for result in results]
        expected, found = max(pairs, key=lambda pair: pair[1])
        seconds = max(result["seconds"] for result in results)
        speed = results[0]["tokens"] / seconds / layout.world
        mfu = speed * flops_per_token(facts, 1024) / peak_flops
        step = max(result["step"] for result in results)
        ratio = expected / found if found else float("nan")
        print(
            f"{name:16} {expected / 2**30:9.2f}G {found / 2**30:9.2f}G {ratio:6.3f} {seconds * 1e3:7.0f}ms "
            f"{step * 1e3:6.0f}ms {speed:10,.0f} {mfu:.1%}",
            flush=True,
        )
        components = dict(predicted[results[0]["stage"]].components)
        rows.append({"case": name, **asdict(case), "ranks": results, "predicted": pairs, "components": components,
                     "tokens_per_s_per_gpu": speed, "mfu": mfu})  # fmt: skip
        if options.json:
            with open(options.json, "w") as file:
                json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
