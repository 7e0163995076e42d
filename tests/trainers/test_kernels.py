"""A training step by the fast versions equals one by the plain versions, whatever the layout."""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from tiny import distance, ragged_batch
from torch import Tensor

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
from pentad.kernels.selection import PLAIN, Kernels, select_kernels
from pentad.layout import Layout
from pentad.samples.packing import plan_microbatches

# What runs on the CPU, too.
FAST = Kernels(linear="accumulate", mlp="torch", optimizer="fused")
CLIP = 0.1


def steps(
    rank: Rank, directory: Path, ddp: dict[str, bool], lora: LoraSettings | None = None
) -> list[tuple[float, dict[str, Tensor]]]:
    """A step by the plain versions, and one by the fast ones."""
    return [step(rank, directory, kernels, ddp, lora) for kernels in (PLAIN, FAST)]


def step(
    rank: Rank, directory: Path, kernels: Kernels, ddp: dict[str, bool], lora: LoraSettings | None = None
) -> tuple[float, dict[str, Tensor]]:
    """The gradient norm, and gradients and new weights by name, of several microbatches."""
    from pentad.trainers.megatron import trainer as trainer_module

    trainer_module.select_kernels = lambda *_, **__: kernels
    settings = TrainerSettings(total_steps=1, optimizer=OptimizerSettings(lr=1e-3, grad_clip=CLIP, eps=1e-5))
    trainer = rank.trainer(directory, settings, MegatronSettings(ddp=ddp), 1, lora)
    batch = ragged_batch()
    plan = plan_microbatches(batch.lengths, rank.layout.data, 44)
    assert plan.num_microbatches > 1
    trainer.forward_backward(batch, plan, SFTLoss(SFTSettings()))
    found = {f"gradient of {name}": value.clone() for name, value in trainer.gradients()}
    norm = trainer.step()["train/grad_norm"]
    return norm, found | {name: value.clone() for name, value in trainer.weights()}


@pytest.mark.parametrize(
    "layout, family, ddp",
    [
        (Layout(), "llama_tied", {}),
        (Layout(tensor=2), "qwen2", {}),
        (Layout(data=2), "qwen3", {"overlap_grad_reduce": True}),
        (Layout(pipeline=2), "llama_tied", {}),
        (Layout(data=2), "qwen2_moe", {"use_distributed_optimizer": False}),
    ],
    ids=str,
)
def test_same_step(layout, family, ddp, tiny_models):
    directory = tiny_models(family).directory
    for (other_norm, other), (one_norm, one) in run_on(layout, steps, directory, ddp):
        assert one_norm == pytest.approx(other_norm, rel=1e-5) and other_norm > CLIP
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert distance(one[name], value) <= 1e-5, name


@pytest.mark.parametrize(
    "layout, family, targets",
    [
        # All of the model; attention alone, so that the frozen MLP is one operation.
        (Layout(tensor=2), "qwen2", "all-linear"),
        (Layout(data=2), "qwen3", ["q_proj", "v_proj"]),
    ],
    ids=["t2-all", "d2-attention"],
)
def test_same_step_of_adapters(layout, family, targets, tiny_models):
    directory, lora = tiny_models(family).directory, LoraSettings(rank=4, alpha=64, targets=targets)
    for (other_norm, other), (one_norm, one) in run_on(layout, steps, directory, {"overlap_grad_reduce": True}, lora):
        assert one_norm == pytest.approx(other_norm, rel=1e-5) and other_norm > CLIP
        for name, value in other.items():
            assert distance(one[name], value) <= 1e-5, name


def diverge(rank: Rank, directory: Path) -> tuple[bool, bool, int]:
    """Whether a step with an infinite gradient was skipped and left the weights, and where the schedule stands."""
    from pentad.trainers.megatron import trainer as trainer_module

    trainer_module.select_kernels = lambda *_, **__: FAST
    trainer = rank.trainer(directory, TrainerSettings(total_steps=1), MegatronSettings(), 1)
    batch = ragged_batch()
    plan = plan_microbatches(batch.lengths, 1, 200)
    trainer.forward_backward(batch, plan, SFTLoss(SFTSettings()))
    before = {name: value.clone() for name, value in trainer.weights()}
    next(iter(trainer.models[0].parameters())).main_grad.view(-1)[0] = torch.inf
    skipped = trainer.step()["train/skipped_updates"] == 1
    same = all(torch.equal(value, before[name]) for name, value in trainer.weights())
    return skipped, same, trainer.schedule.num_steps


def test_an_infinite_gradient_updates_nothing(tiny_models):
    assert run_on(Layout(), diverge, tiny_models("llama").directory) == [(True, True, 0)]


def test_cpu_is_plain():
    assert select_kernels(torch.device("cpu"), torch.bfloat16, "auto") == PLAIN
