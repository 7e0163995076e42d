"""The embedded engine with adapters: the base comes once, and what is computed is the trainer's."""

import asyncio
from pathlib import Path

import pytest
import torch
from engine_calls import load
from lora_oracle import random_adapter
from ranks import Rank, run_on
from tiny import ragged_batch
from torch import Tensor

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
from pentad.engines.hf.engine import EmbeddedEngine
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches
from pentad.weights.proof import WeightMismatchError, check_checksums
from pentad.weights.transport.bucket import Bucket, pack

LORA = LoraSettings(rank=4, alpha=8, targets=r".*(_proj|\.gate)")


def publish_twice(rank: Rank, directory: Path, lora: LoraSettings, batch: Batch) -> list[tuple[list[Bucket], Tensor]]:
    """All weights, and the adapters alone after a step; log-probs with each; and the model merged by the trainer."""
    settings = TrainerSettings(total_steps=3, optimizer=OptimizerSettings(lr=1e-2))
    trainer = rank.trainer(directory, settings, optimizer_steps=3, lora=lora)
    plan = plan_microbatches(batch.lengths, rank.layout.data, 64)
    found = []
    for what in ("all", "adapters", "merged"):
        logprobs, _ = trainer.logprobs(batch, plan, 1.0)
        found.append((list(pack(trainer.weights(what), torch.float32, 20_000)), logprobs))
        if what == "all":
            trainer.forward_backward(batch, plan, SFTLoss(SFTSettings()))
            trainer.step()
    return found


def tensors(buckets: list[Bucket]) -> list[tuple[str, Tensor]]:
    return [(name, tensor.clone()) for bucket in buckets for name, tensor in bucket.tensors()]


def scored(engine: EmbeddedEngine, batch: Batch) -> Tensor:
    return torch.cat(asyncio.run(engine.logprobs(batch.tokens.split(batch.lengths), 1.0))) * batch.loss_mask


@pytest.mark.parametrize("case", [("qwen2", Layout(tensor=2)), ("qwen3_moe", Layout(data=2, expert=2))], ids=str)
def test_the_engine_computes_what_the_trainer_does(case, tiny_models, tmp_path):
    family, layout = case
    tiny, batch, lora = tiny_models(family), ragged_batch(), LORA.model_copy(update={"adapter": tmp_path})
    random_adapter(tiny.model.config, lora, tmp_path)
    (first, later, merged), *_ = run_on(layout, publish_twice, tiny.directory, lora, batch)
    engine = EmbeddedEngine(tiny.model.config, lora=lora)
    for version, (buckets, logprobs) in enumerate((first, later)):
        held = load(engine, iter(tensors(buckets)), version)
        check_checksums({entry.name: entry.checksum for one in buckets for entry in one.entries}, held, "engine 0")
        assert float((scored(engine, batch) - logprobs).abs().max()) < 1e-4
    assert all(".lora_" in name for name, _ in tensors(later[0]))
    assert float((first[1] - later[1]).abs().max()) > 1e-3

    async def nap() -> None:
        await engine.sleep()
        await engine.wake()

    asyncio.run(nap())
    load(engine, iter(tensors(later[0])), 2)
    assert float((scored(engine, batch) - later[1]).abs().max()) < 1e-4
    # A run starts an engine anew where one was lost; all engines are then given everything again.
    load(engine, iter(tensors(first[0])), 3)
    assert float((scored(engine, batch) - first[1]).abs().max()) < 1e-4
    # An engine that knows no adapters has the same from merged weights.
    plain = EmbeddedEngine(tiny.model.config)
    load(plain, iter(tensors(merged[0])), 0)
    assert float((scored(plain, batch) - later[1]).abs().max()) < 1e-4


def test_adapters_that_do_not_fit_are_refused(tiny_models, tmp_path):
    tiny = tiny_models("qwen2")
    matrices = random_adapter(tiny.model.config, LORA, tmp_path)
    engine = EmbeddedEngine(tiny.model.config, lora=LORA)
    with pytest.raises(WeightMismatchError, match="did not arrive"):
        load(engine, iter(matrices.items()), 0)
    base = [(name, parameter.detach()) for name, parameter in tiny.model.named_parameters()]
    name, *_ = matrices
    with pytest.raises(WeightMismatchError, match=f"1 matrices of adapters did not arrive: {name}"):
        load(engine, iter([*base, *list(matrices.items())[1:]]), 0)
    with pytest.raises(WeightMismatchError, match="arrived twice"):
        load(engine, iter([*matrices.items(), *matrices.items()]), 0)
    with pytest.raises(WeightMismatchError, match="no adapter here has it so"):
        load(engine, iter([(name, torch.zeros(1, 1))]), 0)
    assert engine.version == -1
