"""Optimizer steps equal torch.optim.AdamW on the transformers model; schedules equal their formulas."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import losses
import pytest
import torch
from ranks import Rank, run_on
from tiny import TinyModel, ragged_batch, trained, transformers_logprobs
from torch import Tensor

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import OptimizerSettings, ScheduleSettings, TrainerSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches

LOSS = SFTLoss(SFTSettings())
# Of an element after a few steps of 1e-3 each; processors round differently.
BOUND = 5e-6


def train(
    rank: Rank,
    directory: Path,
    settings: TrainerSettings,
    batches: list[Batch],
    optimizer_steps: int,
    megatron: MegatronSettings | None = None,
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Metrics of each step, and the weights after the last."""
    trainer = rank.trainer(directory, settings, megatron, optimizer_steps)
    metrics = []
    for batch in batches:
        trainer.forward_backward(batch, plan_microbatches(batch.lengths, rank.layout.data, 64), LOSS)
        metrics.append(trainer.step())
    return metrics, {name: value.clone() for name, value in trainer.weights()}


def adamw(
    tiny: TinyModel,
    settings: OptimizerSettings,
    rates: list[float],
    batches: list[Batch],
    kind: type[torch.optim.Adam] = torch.optim.AdamW,
) -> tuple[list[float], dict[str, Tensor]]:
    """The same with transformers and torch: gradient norms and weights.

    Megatron decays matrices only; norms and biases stay as they are.
    """
    model = deepcopy(tiny.model)
    parameters = list(model.parameters())
    optimizer = kind(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=settings.betas,
        eps=settings.eps,
    )
    norms = []
    for rate, batch in zip(rates, batches, strict=True):
        optimizer.zero_grad()
        losses.sft(trained(transformers_logprobs(model, batch)[0], batch)).backward()
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters])))
        if settings.grad_clip:
            torch.nn.utils.clip_grad_norm_(parameters, settings.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return norms, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "layout, family, clip, decay",
    [
        (Layout(), "qwen2", 1e3, 0.1),
        (Layout(), "qwen3", 0.1, 0.0),
        (Layout(), "llama", 0.0, 0.1),
        (Layout(data=2, tensor=2), "qwen3", 0.1, 0.1),
    ],
    ids=str,
)
def test_steps_equal_adamw(layout, family, clip, decay, tiny_models):
    # Where a gradient is as small as eps, Adam makes rounding errors of the gradient visible; so eps is not tiny.
    optimizer = OptimizerSettings(lr=1e-3, weight_decay=decay, grad_clip=clip, betas=(0.8, 0.9), eps=1e-5)
    settings = TrainerSettings(total_steps=3, optimizer=optimizer)
    batches = [ragged_batch(seed) for seed in range(3)]
    norms, expected = adamw(tiny_models(family), optimizer, [1e-3] * 3, batches)
    assert min(norms) > 0.1, "clipping at 0.1 would do nothing"
    start = dict(tiny_models(family).model.named_parameters())
    for metrics, weights in run_on(layout, train, tiny_models(family).directory, settings, batches, 3):
        assert [step["train/grad_norm"] for step in metrics] == pytest.approx(norms, rel=1e-4)
        for name, value in expected.items():
            assert float((weights[name] - value).abs().max()) <= BOUND, name
            assert float((start[name] - value).abs().max()) > 1e-4, f"{name} hardly moved; the test shows nothing"


def test_megatrons_own_settings_of_the_optimizer(tiny_models):
    """Weight decay as a part of the gradient, which is plain Adam; and how much of the gradient is zero."""
    asked = MegatronSettings(optimizer={"decoupled_weight_decay": False, "log_num_zeros_in_grad": True})
    optimizer = OptimizerSettings(lr=1e-3, weight_decay=0.5, grad_clip=0.0, eps=1e-5)
    settings, batches = TrainerSettings(total_steps=3, optimizer=optimizer), [ragged_batch(seed) for seed in range(3)]
    _, expected = adamw(tiny_models("llama"), optimizer, [1e-3] * 3, batches, torch.optim.Adam)
    _, decoupled = adamw(tiny_models("llama"), optimizer, [1e-3] * 3, batches)
    ((metrics, weights),) = run_on(
        Layout(), train, tiny_models("llama").directory, settings, batches, 3, asked
    )  # fmt: skip
    for name, value in expected.items():
        assert float((weights[name] - value).abs().max()) <= 1e-5, name
    assert max(float((decoupled[name] - value).abs().max()) for name, value in expected.items()) > 1e-4
    # At least the rows of the embedding of tokens that no sequence has.
    assert all(step["train/grad_zeros"] > 0 for step in metrics)


def rate(schedule: ScheduleSettings, peak: float, step: int, total: int) -> float:
    """Learning rate of optimizer step 1, 2, ..."""
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    done = min(1.0, (step - schedule.warmup_steps) / (total + 1 - schedule.warmup_steps))
    share = 1 - done if schedule.name == "linear" else (1 + math.cos(math.pi * done)) / 2
    lowest = peak * schedule.min_lr_ratio
    return lowest + (peak - lowest) * share


SCHEDULES = [
    ScheduleSettings(name=name, warmup_steps=warmup, min_lr_ratio=ratio)
    for name, warmup, ratio in [
        ("constant", 0, 0.0),
        ("constant", 5, 0.0),
        ("linear", 0, 0.1),
        ("linear", 5, 0.0),
        ("cosine", 0, 0.0),
        ("cosine", 4, 0.2),
        ("linear", 30, 0.0),
    ]
]


def follow(
    rank: Rank, directory: Path, schedules: list[ScheduleSettings], batch: Batch, total: int
) -> list[list[float]]:
    answers = []
    for schedule in schedules:
        settings = TrainerSettings(total_steps=total, optimizer=OptimizerSettings(lr=1e-3), schedule=schedule)
        metrics, _ = train(rank, directory, settings, [batch] * total, total)
        answers.append([step["train/lr"] for step in metrics])
    return answers


def test_schedules_equal_their_formulas(tiny_models):
    batch = ragged_batch(lengths=[(2, 3), (1, 4)])
    (answers,) = run_on(Layout(), follow, tiny_models("llama").directory, SCHEDULES, batch, 20)
    for schedule, rates in zip(SCHEDULES, answers, strict=True):
        expected = [rate(schedule, 1e-3, step, 20) for step in range(1, 21)]
        assert rates == pytest.approx(expected, rel=1e-6, abs=1e-12), schedule


def test_the_reported_rate_is_the_one_that_moved_the_weights(tiny_models):
    schedule = ScheduleSettings(name="cosine", warmup_steps=2, min_lr_ratio=0.1)
    optimizer = OptimizerSettings(lr=1e-3, eps=1e-5)
    settings = TrainerSettings(total_steps=5, optimizer=optimizer, schedule=schedule)
    batches = [ragged_batch(seed) for seed in range(5)]
    rates = [rate(schedule, 1e-3, step, 5) for step in range(1, 6)]
    _, expected = adamw(tiny_models("llama"), optimizer, rates, batches)
    ((_, weights),) = run_on(Layout(), train, tiny_models("llama").directory, settings, batches, 5)
    for name, value in expected.items():
        assert float((weights[name] - value).abs().max()) <= BOUND, name


def poison(rank: Rank, directory: Path, batch: Batch, value: float) -> tuple[float, list[str], bool, list[float]]:
    """One rank's gradient gets a bad element; afterwards a sound minibatch is trained on."""
    trainer = rank.trainer(directory)
    plan = plan_microbatches(batch.lengths, rank.layout.data, 64)

    def weights() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in trainer.weights()}

    before = weights()
    trainer.forward_backward(batch, plan, LOSS)
    if rank.number == rank.layout.world - 1:
        for buffer in trainer.models[0].buffers:
            for bucket in buffer.buckets:
                bucket.grad_data.chunk(rank.groups.dp.size())[rank.groups.dp.rank()][0] = value
    skipped, named = trainer.step()["train/skipped_updates"], trainer.not_finite
    after = weights()
    same = all(torch.equal(before[name], after[name]) for name in before)
    trainer.forward_backward(batch, plan, LOSS)
    metrics = trainer.step()
    return (
        skipped,
        named,
        same,
        [metrics["train/lr"], float(all(value.isfinite().all() for value in weights().values()))],
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layout", [Layout(), Layout(data=2, tensor=2)], ids=str)
def test_a_gradient_that_is_not_finite_updates_nothing_anywhere(layout, value, tiny_models):
    found = run_on(layout, poison, tiny_models("llama").directory, ragged_batch(), value)
    assert [bool(named) for _, named, _, _ in found] == [False] * (layout.world - 1) + [True], "the tensor is not named"
    for skipped, _, same, later in found:
        assert skipped == 1
        assert same, "the weights changed"
        assert later == [1e-6, 1.0], "the next step does not train as the first would have"


def counted(method: Callable[[], Any], calls: dict[str, int]) -> Callable[[], Any]:
    def call() -> Any:
        calls[method.__name__] = calls.get(method.__name__, 0) + 1
        return method()

    return call


def count_calls(rank: Rank, directory: Path, batch: Batch) -> tuple[list[float], list[float], dict[str, int]]:
    """Metrics and norms of the weights of three steps by Megatron's own `step`, then by ours; how often ours looks."""

    def steps(own: bool) -> tuple[list[float], dict[str, int]]:
        trainer = rank.trainer(directory, TrainerSettings(total_steps=3, optimizer=OptimizerSettings(lr=1e-2)))
        optimizer, numbers, calls = trainer.optimizer, [], {}
        for name in ("prepare_grads", "get_grad_norm"):
            setattr(optimizer, name, counted(getattr(optimizer, name), calls))
        for _ in range(3):
            trainer.forward_backward(batch, plan_microbatches(batch.lengths, rank.layout.data, 64), LOSS)
            if own:
                metrics = trainer.step()
                norm, lr = metrics["train/grad_norm"], metrics["train/lr"]
            else:
                trainer.schedule.step(increment=1)
                _, norm, _ = optimizer.step()
                lr = optimizer.param_groups[0]["lr"]
            numbers += [float(norm), lr, *(float(value.double().norm()) for _, value in trainer.weights())]
        return numbers, calls

    megatrons, _ = steps(own=False)
    ours, calls = steps(own=True)
    return megatrons, ours, calls


@pytest.mark.parametrize("family, layout", [("llama", Layout()), ("qwen3_moe", Layout(data=2, expert=2))], ids=str)
def test_gradients_are_prepared_once_a_step_with_megatrons_own_result(family, layout, tiny_models):
    for megatrons, ours, calls in run_on(layout, count_calls, tiny_models(family).directory, ragged_batch()):
        assert ours == megatrons
        assert calls == {"prepare_grads": 3, "get_grad_norm": 3}
