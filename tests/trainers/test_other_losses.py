"""Losses that look at whole sequences or pairs have the same value and gradients on one rank and on two."""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from tiny import distance, grpo_batch
from torch import Tensor

from pentad.algorithms.make import make_algorithm
from pentad.config.schema.algorithms import AlgorithmSettings, DPOSettings, GSPOSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches

ASKED: list[AlgorithmSettings] = [
    GSPOSettings(clip_low=0.1, clip_high=0.2, kl_coef=0.1, entropy_coef=0.05),
    DPOSettings(),
]


def compute(rank: Rank, directory: Path, batch: Batch) -> list[tuple[dict[str, float], dict[str, Tensor]]]:
    """Metrics and gradients of each loss."""
    trainer, answers = rank.trainer(directory), []
    for settings in ASKED:
        pairs = batch.per_sequence["pair_ids"].tolist() if settings.name == "dpo" else None
        plan = plan_microbatches(batch.lengths, rank.layout.data, 52, together=pairs)
        assert plan.num_microbatches > 1
        metrics = trainer.forward_backward(batch, plan, make_algorithm(settings).losses()["policy"], 1.0)
        answers.append((metrics, dict(trainer.gradients())))
    return answers


def test_two_ranks_compute_what_one_does(tiny_models):
    tiny = tiny_models("llama_tied")
    batch = grpo_batch(tiny.model)
    batch = batch.select(range(batch.num_sequences // 2 * 2))
    places = torch.arange(batch.num_sequences)
    batch = batch.with_per_sequence("pair_ids", places.flip(0) // 2)
    batch = batch.with_per_sequence("chosen", places % 2 == 0)
    batch = batch.with_per_token("importance_weights", torch.linspace(0.5, 1.5, batch.num_tokens))
    (alone,) = run_on(Layout(), compute, tiny.directory, batch)
    for answers in run_on(Layout(data=2), compute, tiny.directory, batch):
        for (metrics, gradients), (wanted, expected) in zip(answers, alone, strict=True):
            assert metrics == pytest.approx(wanted, rel=1e-5, abs=1e-6)
            assert gradients.keys() == expected.keys()
            assert any(gradient.any() for gradient in expected.values())
            for name, gradient in expected.items():
                assert distance(gradients[name], gradient) <= 1e-5, name
