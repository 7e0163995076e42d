"""DPO against its equation in float64, and pairs that are packed in any order."""

import math

import pytest
import torch
from torch import Tensor

from pentad.algorithms.make import make_algorithm
from pentad.algorithms.protocol import Outputs
from pentad.config.schema.algorithms import DPOSettings
from pentad.samples.batch import Batch

BETA = 0.3
LENGTHS = [(2, 5), (2, 1), (3, 8), (3, 2), (1, 4), (1, 12)]


def make_case() -> tuple[Batch, Tensor]:
    """Three pairs and the policy's log-probs, float64."""
    random = torch.Generator().manual_seed(0)
    batch = Batch.from_sequences([(torch.ones(p).long(), torch.ones(r).long()) for p, r in LENGTHS])
    reference = -torch.rand(batch.num_tokens, generator=random) * batch.loss_mask
    batch = batch.with_per_token("ref_logprobs", reference)
    batch = batch.with_per_sequence("pair_ids", torch.tensor([7, 7, 0, 0, 3, 3]))
    batch = batch.with_per_sequence("chosen", torch.tensor([True, False, True, False, False, True]))
    noise = torch.randn(batch.num_tokens, generator=random) * batch.loss_mask
    return batch, (reference.double() + noise).requires_grad_()


def direct(batch: Batch, logprobs: Tensor) -> Tensor:
    """https://arxiv.org/abs/2305.18290, equation 7."""
    log_ratios = (logprobs - batch.per_token["ref_logprobs"].double()) * batch.loss_mask
    sums = [part.sum() for part in log_ratios.split(batch.lengths)]
    pairs = [(0, 1), (2, 3), (5, 4)]
    return sum(-torch.log(1 / (1 + torch.exp(-BETA * (sums[w] - sums[l])))) for w, l in pairs) / 3  # noqa: E741


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4, 5]], [[2, 3], [0, 1], [4, 5]], [[5, 0, 4, 1], [3, 2]]])
def test_loss_and_gradient_equal_the_equation(parts):
    batch, logprobs = make_case()
    loss = make_algorithm(DPOSettings(dpo_beta=BETA)).losses()["policy"]
    places = torch.arange(batch.num_tokens).split(batch.lengths)
    total, right = torch.zeros((), dtype=torch.float64), 0.0
    for part in parts:
        chosen = logprobs[torch.cat([places[index] for index in part])]
        value, metrics = loss(Outputs(chosen, torch.zeros_like(chosen)), batch.select(part))
        total, right = total + value, right + float(metrics["train/preference_accuracy"].total)
        assert metrics["train/preference_accuracy"].count == len(part) / 2
    got, wanted = total / loss.denominator(batch), direct(batch, logprobs)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)
    (mine,), (theirs,) = torch.autograd.grad(got, logprobs), torch.autograd.grad(wanted, logprobs)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-12)
    assert 0 < right < 3, "all pairs are alike"


@pytest.mark.parametrize("distance", [1e4, -1e4])
def test_far_policies_give_no_overflow(distance):
    batch, logprobs = make_case()
    far = (logprobs.detach().float() + distance * batch.per_sequence["chosen"][batch.sequence_ids()]).requires_grad_()
    value, _ = make_algorithm(DPOSettings(dpo_beta=BETA)).losses()["policy"](Outputs(far, torch.zeros_like(far)), batch)
    (gradient,) = torch.autograd.grad(value, far)
    assert value.isfinite() and gradient.isfinite().all()


def test_a_policy_that_has_not_moved_has_the_loss_of_a_guess():
    batch, _ = make_case()
    start = batch.per_token["ref_logprobs"].double()
    loss = make_algorithm(DPOSettings()).losses()["policy"]
    value, _ = loss(Outputs(start, torch.zeros_like(start)), batch)
    assert float(value) / loss.denominator(batch) == pytest.approx(math.log(2), rel=1e-12)
