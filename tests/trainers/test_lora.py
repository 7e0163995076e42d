"""Adapters compute what PEFT computes, and per expert what an oracle says that is written out expert by expert."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_oracle import adapted_gradients, merge_into, random_adapter
from ranks import Rank, run_on
from tiny import TinyModel, distance, ragged_batch, transformers_logprobs
from torch import Tensor

from pentad.algorithms.make import make_algorithm
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
from pentad.layout import Layout
from pentad.samples.packing import plan_microbatches
from pentad.weights.table import WeightTable

BOUND = 1e-4
# Name -> settings without the adapter's directory.
CASES = {
    "llama": {"targets": "all-linear"},
    "qwen2": {"targets": ["q_proj", "v_proj", "down_proj"], "rslora": True},
    "qwen3": {"targets": "all-linear", "exclude": ["up_proj", "k_proj"]},
    "mistral": {"targets": r"model\.layers\.1\..*_proj"},
}
Answer = tuple[Tensor, Tensor, dict[str, Tensor]]


def compute(rank: Rank, directory: Path, lora: LoraSettings, megatron: MegatronSettings) -> Answer:
    """Log-probs with and without the adapters, and their gradients."""
    trainer = rank.trainer(directory, lora=lora, megatron=megatron)
    batch = ragged_batch()
    plan = plan_microbatches(batch.lengths, rank.layout.data, 48)
    logprobs, _ = trainer.logprobs(batch, plan, 1.0)
    with trainer.without_adapters():
        reference, _ = trainer.logprobs(batch, plan, 1.0)
    trainer.forward_backward(batch, plan, make_algorithm(SFTSettings()).losses()["policy"])
    return logprobs, reference, {name: gradient.clone() for name, gradient in trainer.gradients()}


def sft(logprobs: Tensor, mask: Tensor) -> Tensor:
    return -logprobs.sum() / mask.sum()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", CASES)
def test_peft_computes_the_same(name, recompute, tiny_models, tmp_path):
    peft = pytest.importorskip("peft")
    if recompute and name != "llama":
        pytest.skip("one family is enough")
    tiny: TinyModel = tiny_models(name)
    settings = LoraSettings(rank=4, alpha=8, **CASES[name])
    exclude = settings.exclude or None
    config = peft.LoraConfig(
        r=4, lora_alpha=8, use_rslora=settings.rslora, target_modules=settings.targets, exclude_modules=exclude
    )
    torch.manual_seed(1)
    batch = ragged_batch()
    plain = transformers_logprobs(tiny.model, batch)[0].detach()
    model = peft.get_peft_model(type(tiny.model).from_pretrained(tiny.directory), config).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    expected = transformers_logprobs(model, batch)[0]
    sft(expected, batch.loss_mask).backward()
    gradients = {
        key.removeprefix("base_model.model.").replace(".default", ""): parameter.grad
        for key, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    extra = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    megatron = MegatronSettings(transformer=extra if recompute else {})
    lora = settings.model_copy(update={"adapter": tmp_path})
    logprobs, reference, found = run_on(Layout(), compute, tiny.directory, lora, megatron)[0]
    assert float((logprobs - expected.detach()).abs().max()) < BOUND
    assert float((reference - plain).abs().max()) < BOUND
    assert float((logprobs - reference).abs().max()) > 0.01
    assert found.keys() == gradients.keys()
    assert max(distance(found[key], gradients[key]) for key in found) < BOUND


@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2, expert_tensor=2), Layout(tensor=2, expert=2)], ids=str)
@pytest.mark.parametrize("name", ["qwen3_moe", "qwen2_moe", "mixtral"])
def test_every_expert_has_its_own(name: str, layout: Layout, tiny_models: Callable[[str], TinyModel], tmp_path: Path):
    tiny = tiny_models(name)
    projections = ["w1", "w2", "w3"] if name == "mixtral" else ["gate_proj", "up_proj", "down_proj"]
    # `gate` is the router.
    lora = LoraSettings(rank=4, alpha=8, targets=["q_proj", "o_proj", "gate", *projections], adapter=tmp_path)
    matrices = random_adapter(tiny.model.config, lora, tmp_path)
    model = type(tiny.model).from_pretrained(tiny.directory, experts_implementation="eager").eval()
    merge_into(model, matrices, lora.scale)
    batch = ragged_batch()
    expected = transformers_logprobs(model, batch)[0]
    sft(expected, batch.loss_mask).backward()
    gradients = adapted_gradients(model, matrices, lora.scale)
    logprobs, reference, found = run_on(layout, compute, tiny.directory, lora, MegatronSettings())[0]
    plain = transformers_logprobs(tiny.model, batch)[0].detach()
    assert float((logprobs - expected.detach()).abs().max()) < BOUND
    assert float((reference - plain).abs().max()) < BOUND
    assert found.keys() == gradients.keys()
    assert max(distance(found[key], gradients[key]) for key in found) < BOUND


def train(rank: Rank, directory: Path, lora: LoraSettings, folder: Path, straight: int, first: int) -> list[Any]:
    """Weights after so many steps, and after some, a save, and the rest by a new trainer; and what the file holds."""
    from pentad.trainers.megatron.state import RankState
    from pentad.weights.block_files import BlockReader

    def make() -> Any:
        settings = TrainerSettings(total_steps=straight, optimizer=OptimizerSettings(lr=1e-2))
        return rank.trainer(directory, settings, optimizer_steps=straight, lora=lora)

    def steps(trainer: Any, numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            batch = ragged_batch(number)
            plan = plan_microbatches(batch.lengths, rank.layout.data, 48)
            loss = make_algorithm(SFTSettings()).losses()["policy"]
            losses.append({**trainer.forward_backward(batch, plan, loss), **trainer.step()})
        return losses

    trainer = make()
    losses = [steps(trainer, range(straight))]
    weights = [dict((name, tensor.clone()) for name, tensor in trainer.weights())]
    trainer = make()
    begun = steps(trainer, range(first))
    RankState(trainer).stage().write(folder, rank.number)
    counters = RankState(trainer).counters()
    torch.distributed.barrier()
    trainer = make()
    names = BlockReader(folder).names("weight")
    RankState(trainer).load(BlockReader(folder), {"updates": first, **counters})
    losses.append([*begun, *steps(trainer, range(first, straight))])
    weights.append({name: tensor.clone() for name, tensor in trainer.weights()})
    return [losses, weights, sorted(names)]


@pytest.mark.parametrize(
    ("name", "layout", "dropout"),
    [("qwen2", Layout(tensor=2), 0.0), ("qwen3_moe", Layout(data=2, expert=2), 0.1)],
    ids=["t2", "e2-dropout"],
)
def test_twelve_steps_are_five_and_seven(name, layout, dropout, tiny_models, tmp_path):
    tiny = tiny_models(name)
    lora = LoraSettings(rank=4, dropout=dropout)
    for losses, weights, names in run_on(layout, train, tiny.directory, lora, tmp_path, 12, 5):
        assert losses[0] == losses[1]
        for key, value in weights[0].items():
            assert torch.equal(value, weights[1][key]), key
        assert all(".lora_" in key for key in names)
        base = dict(WeightTable(tiny.model).tensors)
        assert all(torch.equal(value, base[key]) for key, value in weights[0].items() if key in base)
        assert any(value.any() for key, value in weights[0].items() if ".lora_B" in key)
