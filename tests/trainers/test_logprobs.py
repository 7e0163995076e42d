"""Log-probs and entropies equal transformers', packed or not.

tests/verify has every pair of dimensions for every family; here are entropies and what is not packed on a few layouts.
"""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from tiny import DENSE, MIXTURE, ROPE, one_by_one, ragged_batch, transformers_logprobs
from torch import Tensor

from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches

BOUND = 1e-4
LAYOUTS = [Layout(), Layout(data=2, tensor=2), Layout(tensor=4)]


def score(rank: Rank, directories: list[Path], batch: Batch, temperature: float) -> list[tuple[Tensor, Tensor]]:
    plans = [
        plan_microbatches(batch.lengths, rank.layout.data, 64),
        one_by_one(batch.num_sequences, rank.layout.data),
    ]
    trainers = [rank.trainer(directory, optimizer_steps=None) for directory in directories]
    return [trainer.logprobs(batch, plan, temperature) for trainer in trainers for plan in plans]


def check(layout: Layout, names: list[str], tiny_models, temperature: float = 1.0) -> None:
    batch = ragged_batch()
    models = [tiny_models(name) for name in names]
    for answer in run_on(layout, score, [model.directory for model in models], batch, temperature):
        for number, (name, model) in enumerate(zip(names, models, strict=True)):
            with torch.no_grad():
                expected = transformers_logprobs(model.model, batch, temperature)
            for packed, got in zip((True, False), answer[2 * number : 2 * number + 2], strict=True):
                for kind, one, other in zip(("log-prob", "entropy"), got, expected, strict=True):
                    worst = float((one - other).abs().max())
                    assert worst <= BOUND, f"{name}, packed={packed}: {kind} is {worst} off"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_family_on(layout, tiny_models):
    check(layout, list(DENSE), tiny_models)


@pytest.mark.parametrize("layout", [Layout(pipeline=2), Layout(context=2)], ids=str)
def test_pipelines_and_contexts(layout, tiny_models):
    check(layout, ["llama_tied", "qwen3"], tiny_models)


@pytest.mark.parametrize("layout", [Layout(), Layout(data=2, expert=2)], ids=str)
def test_mixtures(layout, tiny_models):
    check(layout, list(MIXTURE), tiny_models)


def test_temperature(tiny_models):
    check(Layout(tensor=2), ["llama", "qwen3"], tiny_models, temperature=0.7)


def test_rotary_scaling(tiny_models):
    check(Layout(), list(ROPE), tiny_models)
    expected = [transformers_logprobs(tiny_models(name).model, ragged_batch())[0] for name in (*ROPE, "llama_tied")]
    for number, one in enumerate(expected):
        for other in expected[:number]:
            assert (one - other).abs().max() > 100 * BOUND, "two rotary scalings do the same; the test shows nothing"
