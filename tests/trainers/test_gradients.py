"""Loss and per-parameter gradients equal transformers', whatever the loss, the packing and the microbatches.

tests/verify has every pair of dimensions for every family; here are all losses and packings on a few layouts.
"""

from pathlib import Path

import losses
import pytest
import torch
from ranks import Rank, run_on
from tiny import (
    DENSE,
    MIXTURE,
    distance,
    gradients_of,
    grpo_batch,
    one_by_one,
    ragged_batch,
    trained,
    transformers_logprobs,
)
from torch import Tensor

from pentad.algorithms.make import make_algorithm
from pentad.algorithms.protocol import Loss
from pentad.config.schema.algorithms import AlgorithmSettings, GRPOSettings, SFTSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan, plan_microbatches

BOUND = 1e-5
LOSSES: dict[str, AlgorithmSettings] = {
    "sft-token": SFTSettings(loss_mean="token"),
    "sft-sequence": SFTSettings(loss_mean="sequence"),
    "grpo-token": GRPOSettings(loss_mean="token", kl_coef=0.1, clip_low=0.1, clip_high=0.3),
    "grpo-sequence": GRPOSettings(loss_mean="sequence", kl_coef=0.1, clip_low=0.1, clip_high=0.3),
}
Answer = tuple[dict[str, float], dict[str, Tensor]]


def make_loss(settings: AlgorithmSettings) -> Loss:
    return make_algorithm(settings).losses()["policy"]


def plans(batch: Batch, ranks: int) -> list[Plan]:
    """One microbatch a rank, some, and one a sequence."""
    budgets = (2 * batch.num_tokens // ranks, 48)
    return [
        *(plan_microbatches(batch.lengths, ranks, budget) for budget in budgets),
        one_by_one(batch.num_sequences, ranks),
    ]


def compute(rank: Rank, jobs: list[tuple[Path, Batch]], asked: list[AlgorithmSettings]) -> list[Answer]:
    """Metrics and gradients of every model, loss and plan, in that order."""
    answers = []
    for directory, batch in jobs:
        trainer = rank.trainer(directory)
        for loss in asked:
            for plan in plans(batch, rank.layout.data):
                metrics = trainer.forward_backward(batch, plan, make_loss(loss), temperature=0.8)
                answers.append((metrics, dict(trainer.gradients())))
    # All ranks of a stage have the same to say; the test reads the first of each.
    return answers if rank.groups.tp.rank() == 0 and rank.groups.dp_cp.rank() == 0 else []


def expected(model, batch: Batch, settings: AlgorithmSettings) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of transformers and autograd, all sequences at once."""
    model.zero_grad()
    value = oracle(transformers_logprobs(model, batch, 0.8)[0], batch, settings)
    value.backward()
    return value.item(), gradients_of(model)


def oracle(logprobs: Tensor, batch: Batch, settings: AlgorithmSettings) -> Tensor:
    """The loss by its equation."""
    mine = trained(logprobs, batch)
    if settings.name == "sft":
        return losses.sft(mine, over=settings.loss_mean)
    return losses.grpo(
        mine,
        trained(batch.per_token["old_logprobs"], batch),
        [float(part.sum() / max(1, part.count_nonzero())) for part in trained(batch.per_token["advantages"], batch)],
        low=settings.clip_low,
        high=settings.clip_high,
        reference=trained(batch.per_token["ref_logprobs"], batch),
        kl_coef=settings.kl_coef,
        estimator=settings.kl_estimator,
        over=settings.loss_mean,
    )


def check(layout: Layout, names: list[str], asked: list[str], tiny_models) -> None:
    models = [tiny_models(name) for name in names]
    batches = [grpo_batch(model.model) for model in models]
    jobs = [(model.directory, batch) for model, batch in zip(models, batches, strict=True)]
    by_rank = [answer for answer in run_on(layout, compute, jobs, [LOSSES[loss] for loss in asked]) if answer]
    answers = [merge(parts) for parts in zip(*by_rank, strict=True)]
    for name, model, batch in zip(names, models, batches, strict=True):
        for loss in asked:
            value, gradients = expected(model.model, batch, LOSSES[loss])
            for number in range(3):
                metrics, got = answers.pop(0)
                what = f"{name}, {loss}, plan {number}"
                assert metrics["train/loss"] == pytest.approx(value, rel=BOUND, abs=1e-6), what
                assert got.keys() == gradients.keys(), what
                for parameter, gradient in gradients.items():
                    assert distance(got[parameter], gradient) <= BOUND, f"{what}: {parameter}"
    assert not answers


def merge(parts: tuple[Answer, ...]) -> Answer:
    """The answer of all pipeline stages."""
    gradients: dict[str, Tensor] = {}
    for metrics, some in parts:
        assert metrics == parts[0][0], "stages report different metrics"
        assert not gradients.keys() & some.keys(), "two stages have the same tensor"
        gradients |= some
    return parts[0][0], gradients


@pytest.mark.parametrize("layout", [Layout(), Layout(data=2, tensor=2)], ids=str)
def test_every_loss_and_plan_on(layout, tiny_models):
    check(layout, ["llama_tied"], list(LOSSES), tiny_models)


@pytest.mark.parametrize("layout", [Layout(), Layout(data=2, tensor=2)], ids=str)
def test_every_family_on(layout, tiny_models):
    check(layout, list(DENSE), ["grpo-token"], tiny_models)


@pytest.mark.parametrize(
    "layout",
    [Layout(pipeline=2), Layout(context=2)],
    ids=str,
)
def test_pipelines_and_contexts(layout, tiny_models):
    check(layout, ["llama_tied", "qwen3"], ["grpo-sequence"], tiny_models)


@pytest.mark.parametrize(
    "layout, families",
    [
        (Layout(), list(MIXTURE)),
        (Layout(data=2, expert=2), list(MIXTURE)),
        (Layout(pipeline=2), ["qwen3_moe_dense"]),
    ],
    ids=str,
)
def test_mixtures(layout, families, tiny_models):
    check(layout, families, ["grpo-token"], tiny_models)


OVERRIDES = {
    "full recompute": MegatronSettings(
        transformer={"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    ),
    "selective recompute": MegatronSettings(
        transformer={"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    ),
    "several buckets": MegatronSettings(ddp={"overlap_grad_reduce": True, "bucket_size": 1000}),
    "plain optimizer": MegatronSettings(ddp={"use_distributed_optimizer": False}),
}


def compute_with(
    rank: Rank, directory: Path, batch: Batch, settings: list[MegatronSettings]
) -> list[dict[str, Tensor]]:
    answers = []
    for megatron in settings:
        trainer = rank.trainer(directory, megatron=megatron)
        # Overlapped reduction differs between the first pass and the others, and counts microbatches.
        for plan in plans(batch, rank.layout.data):
            trainer.forward_backward(batch, plan, make_loss(LOSSES["sft-token"]), temperature=0.8)
        answers.append(dict(trainer.gradients()))
        applied = {**vars(trainer.megatron), **vars(trainer.models[0].ddp_config)}
        for name, value in {**megatron.transformer, **megatron.ddp}.items():
            assert applied[name] == value, f"{name} was not applied"
    return answers


def test_accepted_megatron_settings_change_no_gradient(tiny_models):
    model, batch = tiny_models("qwen3"), ragged_batch()
    _, gradients = expected(model.model, batch, LOSSES["sft-token"])
    layout = Layout(data=2, tensor=2)
    for answers in run_on(layout, compute_with, model.directory, batch, list(OVERRIDES.values())):
        for what, got in zip(OVERRIDES, answers, strict=True):
            for parameter, gradient in gradients.items():
                assert distance(got[parameter], gradient) <= BOUND, f"{what}: {parameter}"


def test_the_bound_would_tell_a_wrong_denominator(tiny_models):
    """What the tests above must see: a gradient scaled by one token more."""
    batch = ragged_batch()
    _, gradients = expected(tiny_models("llama").model, batch, LOSSES["sft-token"])
    tokens = int(batch.loss_mask.sum())
    assert all(distance(value * tokens / (tokens + 1), value) > 100 * BOUND for value in gradients.values())


def gradients_then_step(rank: Rank, directory: Path, batch: Batch, look: bool) -> dict[str, Tensor]:
    trainer = rank.trainer(directory)
    trainer.forward_backward(batch, one_by_one(batch.num_sequences, rank.layout.data), make_loss(LOSSES["sft-token"]))
    if look:
        for _ in trainer.gradients():
            pass
    trainer.step()
    return {name: value.clone() for name, value in trainer.weights()}


def test_looking_at_gradients_changes_nothing(tiny_models):
    arguments = (tiny_models("llama").directory, ragged_batch())
    looked, plain = (run_on(Layout(data=2), gradients_then_step, *arguments, look)[0] for look in (True, False))
    assert all(torch.equal(looked[name], plain[name]) for name in plain)
