"""Steps of GRPO on real ranks equal a program of one process that knows nothing of Pentad: tests/oracles/grpo.py.

Three steps of two optimizer steps each, with a KL penalty to the initial model, on completions that were made up.
"""

import copy
from pathlib import Path

import grpo
import pytest
import torch
from ranks import Rank, run_on

from pentad.algorithms.make import make_algorithm
from pentad.config.schema.algorithms import GRPOSettings
from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches, split_minibatches

# Where a gradient is as small as eps, Adam makes rounding errors of it visible; so eps is not tiny.
RECIPE = grpo.Recipe(
    lr=3e-3, eps=1e-5, weight_decay=0.1, grad_clip=0.5, temperature=0.9, clip_low=0.1, clip_high=0.2, kl_coef=0.1
)
STEPS, GROUPS, SAMPLES = 3, 4, 3
BOUND = 1e-4


def recording() -> list[grpo.Sample]:
    """Random tokens and rewards."""
    random = torch.Generator().manual_seed(0)

    def tokens(most: int) -> list[int]:
        count = int(torch.randint(1, most + 1, (), generator=random))
        return torch.randint(0, 97, (count,), generator=random).tolist()

    made = []
    for step in range(1, STEPS + 1):
        for group in range(GROUPS):
            prompt = tokens(6)
            for _ in range(SAMPLES):
                made.append(grpo.Sample(step, group, prompt, tokens(12), float(torch.rand((), generator=random))))
    return made


def make_batch(samples: list[grpo.Sample]) -> Batch:
    batch = Batch.from_sequences([(torch.tensor(one.prompt), torch.tensor(one.response)) for one in samples])
    batch = batch.with_per_sequence("rewards", torch.tensor([one.reward for one in samples]))
    return batch.with_per_sequence("group_ids", torch.tensor([one.group for one in samples]))


def train(rank: Rank, directory: Path, samples: list[grpo.Sample], recipe: grpo.Recipe) -> list[tuple[float, float]]:
    """Loss and gradient norm of each optimizer step."""
    optimizer = OptimizerSettings(
        lr=recipe.lr,
        eps=recipe.eps,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        grad_clip=recipe.grad_clip,
    )
    algorithm = make_algorithm(
        GRPOSettings(
            clip_low=recipe.clip_low,
            clip_high=recipe.clip_high,
            kl_coef=recipe.kl_coef,
            optimizer_steps=recipe.optimizer_steps,
        )
    )
    settings = TrainerSettings(total_steps=STEPS, optimizer=optimizer)
    trainer = rank.trainer(directory, settings, optimizer_steps=STEPS * recipe.optimizer_steps)
    reference, found = rank.trainer(directory, optimizer_steps=None), []
    for step in range(1, STEPS + 1):
        batch = make_batch([one for one in samples if one.step == step])
        plan = plan_microbatches(batch.lengths, rank.layout.data, 40)
        for name, model in (("old_logprobs", trainer), ("ref_logprobs", reference)):
            batch = batch.with_per_token(name, model.logprobs(batch, plan, recipe.temperature)[0])
        batch = algorithm.credit(batch)
        for part in split_minibatches(
            batch.num_sequences, recipe.optimizer_steps, batch.per_sequence["group_ids"].tolist()
        ):
            minibatch = batch.select(part)
            plan = plan_microbatches(minibatch.lengths, rank.layout.data, 40)
            metrics = trainer.forward_backward(minibatch, plan, algorithm.losses()["policy"], recipe.temperature)
            found.append((metrics["train/loss"], trainer.step()["train/grad_norm"]))
    return found


@pytest.mark.parametrize(
    ("family", "layout"),
    [("llama_tied", Layout(data=2, tensor=2)), ("qwen3_moe", Layout(tensor=2, expert=2))],
    ids=str,
)
def test_steps_equal_one_process_without_pentad(family, layout, tiny_models):
    tiny, samples = tiny_models(family), recording()
    expected = [pair for step in grpo.train(copy.deepcopy(tiny.model), samples, RECIPE) for pair in step.updates]
    assert len(expected) == STEPS * RECIPE.optimizer_steps
    assert min(norm for _, norm in expected) > RECIPE.grad_clip, "clipping would do nothing"
    for found in run_on(layout, train, tiny.directory, samples, RECIPE):
        assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], abs=BOUND)
        assert [norm for _, norm in found] == pytest.approx([norm for _, norm in expected], rel=BOUND)
