"""A trainer on a GPU goes on bit by bit from what it saved, with torch's fused kernel and page-locked memory."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ragged_batch

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
from pentad.layout import Layout
from pentad.samples.packing import plan_microbatches
from pentad.verify.models import tiny_config, write_random_model
from pentad.weights.block_files import BlockReader


def go_on(folder: Path, dtype: str, answer: Connection) -> None:
    """What the same step gives, of the run that saved and of one that took its state; and how the copy was held."""
    from transformers import AutoConfig

    from pentad.platform.deterministic import make_deterministic
    from pentad.platform.device import enter_platform
    from pentad.trainers.megatron.parallel import join_ranks, make_groups
    from pentad.trainers.megatron.state import RankState
    from pentad.trainers.megatron.trainer import Trainer
    from pentad.weights.hf_files import CheckpointReader

    platform = enter_platform()
    make_deterministic()
    join_ranks(platform, 0, 1, f"file://{folder}/meeting", 60.0)
    groups = make_groups(Layout(), seed=1)
    settings = TrainerSettings(total_steps=5, dtype=dtype, optimizer=OptimizerSettings(lr=1e-2))
    megatron = MegatronSettings(use_deterministic_algorithms=True)
    batches = [ragged_batch(seed) for seed in range(3)]

    def make() -> Trainer:
        config = AutoConfig.from_pretrained(folder / "model")
        trainer = Trainer(config, Layout(), groups, platform, settings, megatron, 5)
        trainer.load(CheckpointReader(folder / "model"))
        return trainer

    def step(trainer: Trainer, number: int) -> dict[str, float]:
        batch = batches[number]
        trained = trainer.forward_backward(batch, plan_microbatches(batch.lengths, 1, 64), SFTLoss(SFTSettings()))
        return trained | trainer.step()

    def stand(trainer: Trainer) -> tuple[dict[str, float], dict[str, Any]]:
        return step(trainer, 2), {name: value.float().cpu().numpy() for name, value in trainer.weights()}

    trainer = make()
    for number in range(2):
        step(trainer, number)
    state = RankState(trainer)
    state.reserve()
    staged = state.stage()
    counters = state.counters()
    before = stand(trainer)
    staged.write(folder, 0)
    trainer = make()
    RankState(trainer).load(BlockReader(folder), counters)
    pinned = all(piece.tensor.is_pinned() for piece in staged.pieces) if platform.is_cuda else None
    answer.send((before, stand(trainer), pinned, counters))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama_tied", "qwen2_moe"])
def test_a_run_goes_on(family: str, dtype: str, tmp_path: Path) -> None:
    write_random_model(tiny_config(family), tmp_path / "model", torch.float32)
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=go_on, args=(tmp_path, dtype, writer))
    process.start()
    writer.close()
    try:
        assert reader.poll(200), "the trainer did not answer in time"
        before, after, pinned, counters = reader.recv()
    finally:
        process.join(20)
        process.kill()
    assert counters == {"updates": 2, "schedule": 2} and pinned in (True, None)
    assert after[0] == before[0]
    for name, value in before[1].items():
        assert (after[1][name] == value).all(), name
