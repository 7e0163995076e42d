"""GRPO against a direct implementation on padded tensors; advantages against numpy; KL against its formulas."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pentad.algorithms.advantages import group_advantages
from pentad.algorithms.grpo import GRPO
from pentad.algorithms.kl import kl_estimate
from pentad.algorithms.protocol import Mean, Outputs
from pentad.algorithms.reduction import spread_over_tokens
from pentad.config.schema.algorithms import GRPOSettings
from pentad.samples.batch import Batch

LENGTHS = [(2, 5), (1, 1), (3, 8), (4, 2), (2, 0), (1, 6)]


def evaluate(settings: GRPOSettings, logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Mean]]:
    value, metrics = GRPO(settings).losses()["policy"](Outputs(logprobs, torch.zeros_like(logprobs)), batch)
    return value, dict(metrics)


def make_batch() -> tuple[Tensor, Batch]:
    """The policy's log-probs, and a batch on which some ratios are clipped on either side."""
    random = torch.Generator().manual_seed(0)
    batch = Batch.from_sequences(
        [(torch.zeros(p, dtype=torch.int64), torch.zeros(r, dtype=torch.int64)) for p, r in LENGTHS]
    )
    old = -torch.rand(batch.num_tokens, generator=random) * batch.loss_mask
    logprobs = (old + torch.randn(batch.num_tokens, generator=random) * 0.4) * batch.loss_mask
    reference = (old + torch.randn(batch.num_tokens, generator=random) * 0.4) * batch.loss_mask
    advantages = torch.randn(batch.num_sequences, generator=random)
    batch = batch.with_per_token("old_logprobs", old).with_per_token("ref_logprobs", reference)
    return logprobs, batch.with_per_token("advantages", spread_over_tokens(advantages, batch))


def _value(x: Tensor | float) -> float:
    return x.item() if isinstance(x, Tensor) else x


def direct(logprobs: Tensor, batch: Batch, settings: GRPOSettings) -> Tensor:
    """The loss sum, written down from the papers on a padded rectangle, token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence, (first, last) in enumerate(zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)):
        terms = []
        for i in range(int(first), int(last)):
            if not batch.loss_mask[i]:
                continue
            ratio = (logprobs[i].double() - batch.per_token["old_logprobs"][i].double()).exp()
            advantage = batch.per_token["advantages"][i].double()
            bounded = min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high, key=_value)
            term = -min(ratio * advantage, bounded * advantage, key=_value)
            if settings.kl_coef:
                log_r = batch.per_token["ref_logprobs"][i].double() - logprobs[i].double()
                kl = {"k1": -log_r, "k2": log_r**2 / 2, "k3": log_r.exp() - 1 - log_r}[settings.kl_estimator]
                term = term + settings.kl_coef * kl
            terms.append(term)
        assert len(terms) == LENGTHS[sequence][1]
        if terms:
            total = total + sum(terms) / (len(terms) if settings.loss_mean == "sequence" else 1)
    return total


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("kl_coef, estimator", [(0.0, "k3"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3")])
def test_loss_and_gradient_equal_a_direct_implementation(mean, kl_coef, estimator):
    settings = GRPOSettings(clip_low=0.1, clip_high=0.25, kl_coef=kl_coef, kl_estimator=estimator, loss_mean=mean)
    logprobs, batch = make_batch()
    logprobs.requires_grad_()
    ours, _ = evaluate(settings, logprobs, batch)
    (gradient,) = torch.autograd.grad(ours, logprobs)
    theirs = direct(logprobs, batch, settings)
    (expected,) = torch.autograd.grad(theirs, logprobs)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    assert gradient[batch.loss_mask].count_nonzero() < batch.loss_mask.sum() or kl_coef, "no token was clipped"


def test_metrics_are_sums_over_trained_tokens():
    logprobs, batch = make_batch()
    settings = GRPOSettings(clip_low=0.1, clip_high=0.25, kl_coef=0.3, kl_estimator="k2")
    _, metrics = evaluate(settings, logprobs, batch)
    assert {float(metric.count) for metric in metrics.values()} == {float(batch.loss_mask.sum())}
    sums = {name: metric.total for name, metric in metrics.items()}
    mask = batch.loss_mask.numpy()
    log_ratio = (logprobs - batch.per_token["old_logprobs"]).numpy()[mask]
    ratio = np.exp(log_ratio)
    # The clip binds where it makes the surrogate smaller: a low ratio with a negative advantage, or a high one with a
    # positive advantage.
    advantages = batch.per_token["advantages"].numpy()[mask]
    binds = ((ratio < 0.9) & (advantages < 0)) | ((ratio > 1.25) & (advantages > 0))
    assert sums["train/clip_fraction"] == binds.sum()
    assert binds.sum() < ((ratio < 0.9) | (ratio > 1.25)).sum(), "no token on which the clip does not bind"
    assert 0 < sums["train/clip_fraction"] < mask.sum()
    np.testing.assert_allclose(sums["train/policy_kl"], (1 / ratio - 1 + log_ratio).sum(), rtol=1e-5)
    reference = (batch.per_token["ref_logprobs"] - logprobs).numpy()[mask]
    np.testing.assert_allclose(sums["train/kl"], (reference**2 / 2).sum(), rtol=1e-5)


def test_sums_of_parts_are_the_sum_of_the_whole():
    logprobs, batch = make_batch()
    settings = GRPOSettings(kl_coef=0.1, loss_mean="sequence")
    whole, metrics = evaluate(settings, logprobs, batch)
    bounds = batch.cu_seqlens.tolist()
    parts = [
        evaluate(settings, logprobs[bounds[i] : bounds[i + 1]], batch.select([i])) for i in range(batch.num_sequences)
    ]
    torch.testing.assert_close(sum(part[0] for part in parts), whole)
    for name, metric in metrics.items():
        torch.testing.assert_close(sum(part[1][name].total for part in parts), metric.total)


def test_on_policy_gradient_is_the_policy_gradient():
    logprobs, batch = make_batch()
    batch = batch.with_per_token("old_logprobs", logprobs.clone())
    logprobs.requires_grad_()
    evaluate(GRPOSettings(), logprobs, batch)[0].backward()
    torch.testing.assert_close(logprobs.grad, -batch.per_token["advantages"])


@pytest.mark.parametrize("divide", [True, False])
def test_advantages_equal_numpy(divide):
    random = np.random.default_rng(0)
    # Ids are neither sorted nor consecutive; one group has one sample, one has equal rewards.
    groups = np.array([7, 3, 7, 100, 3, 7, 7, 3, 50, 50])
    rewards = random.normal(size=len(groups)).astype(np.float32)
    rewards[groups == 50] = 0.25
    got = group_advantages(torch.from_numpy(rewards), torch.from_numpy(groups), divide_by_std=divide).numpy()
    for group in np.unique(groups):
        mine = rewards[groups == group].astype(np.float64)
        expected = mine - mine.mean()
        if divide:
            expected = expected / (mine.std(ddof=1) + 1e-6) if len(mine) > 1 and np.ptp(mine) else expected * 0
        np.testing.assert_allclose(got[groups == group], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.7, 1e4 / 3])
def test_equal_rewards_give_no_advantage_in_spite_of_rounding(reward):
    for size in range(2, 20):
        rewards, groups = torch.full((size,), reward), torch.zeros(size, dtype=torch.int64)
        assert not group_advantages(rewards, groups, divide_by_std=True).any(), f"{size} samples"


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_equal_their_formulas(estimator):
    policy, reference = torch.randn(50), torch.randn(50)
    r = np.exp((reference - policy).double().numpy())
    expected = {"k1": -np.log(r), "k2": np.log(r) ** 2 / 2, "k3": r - 1 - np.log(r)}[estimator]
    np.testing.assert_allclose(kl_estimate(policy, reference, estimator), expected, rtol=1e-4, atol=1e-6)
    if estimator != "k1":
        assert (kl_estimate(policy, reference, estimator) >= 0).all()


def test_unbiased_estimators_average_to_the_divergence():
    random = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 20, generator=random).log_softmax(-1)
    exact = float((p.exp() * (p - q)).sum())
    for estimator in ("k1", "k3"):
        assert float((p.exp() * kl_estimate(p, q, estimator)).sum()) == pytest.approx(exact, rel=1e-4)


def test_spread_leaves_prompts_alone():
    _, batch = make_batch()
    spread = spread_over_tokens(torch.arange(1.0, 7.0), batch)
    for sequence, part in enumerate(spread.split(batch.lengths)):
        prompt, response = LENGTHS[sequence]
        assert part.tolist() == [0.0] * prompt + [sequence + 1.0] * response


@pytest.mark.parametrize("distance", [90.0, -90.0, 1e6, float("inf")])
def test_far_policies_give_no_overflow(distance):
    _, batch = make_batch()
    old = batch.per_token["old_logprobs"]
    advantages = batch.per_token["advantages"].clone()
    advantages[::2] = 0  # 0 times an overflow would be NaN
    batch = batch.with_per_token("advantages", advantages).with_per_token("ref_logprobs", old)
    logprobs = (old + distance * batch.loss_mask.where(batch.loss_mask, torch.tensor(0.0))).nan_to_num(0.0, 1e30, -1e30)
    logprobs.requires_grad_()
    value, metrics = evaluate(GRPOSettings(kl_coef=0.1), logprobs, batch)
    (gradient,) = torch.autograd.grad(value, logprobs)
    assert value.isfinite() and gradient.isfinite().all()
    assert all(metric.total.isfinite() for metric in metrics.values())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_expected_gradient_of_a_penalty_is_that_of_the_documented_divergence(estimator):
    """The expectation over a small vocabulary, exactly; k1 as a loss is why it is refused."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(7, generator=random, dtype=torch.float64).requires_grad_()
    reference = torch.randn(7, generator=random, dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    expectation = (policy.exp().detach() * kl_estimate(policy, reference, estimator)).sum()
    (gradient,) = torch.autograd.grad(expectation, logits, retain_graph=True)
    divergence = {
        "k1": 0 * policy.sum(),
        "k2": (policy.exp() * (policy - reference)).sum(),
        "k3": (reference.exp() * (reference - policy)).sum(),
    }[estimator]
    (expected,) = torch.autograd.grad(divergence, logits)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


def test_a_penalty_in_the_reward_moves_advantages_and_not_the_loss():
    _, batch = make_batch()
    batch = batch.with_per_sequence("rewards", torch.tensor([1.0, 0.0, 1.0, 0.0, 0.5, 1.0]))
    batch = batch.with_per_sequence("group_ids", torch.tensor([0, 0, 0, 1, 1, 1]))
    settings = GRPOSettings(kl_coef=0.3, kl_in="reward", kl_estimator="k1", advantage_std=False)
    credited = GRPO(settings).credit(batch)
    penalty = [
        float((old - reference)[mask].sum())
        for old, reference, mask in zip(
            batch.per_token["old_logprobs"].split(batch.lengths),
            batch.per_token["ref_logprobs"].split(batch.lengths),
            batch.loss_mask.split(batch.lengths),
            strict=True,
        )
    ]
    rewards = np.array([1.0, 0.0, 1.0, 0.0, 0.5, 1.0]) - 0.3 * np.array(penalty)
    advantages = rewards - np.repeat([rewards[:3].mean(), rewards[3:].mean()], 3)
    for sequence, part in enumerate(credited.per_token["advantages"].split(batch.lengths)):
        prompt, response = LENGTHS[sequence]
        np.testing.assert_allclose(part[prompt:], [advantages[sequence]] * response, rtol=1e-4, atol=1e-5)
    logprobs = batch.per_token["old_logprobs"]
    with_penalty = evaluate(settings, logprobs, credited)[0]
    without = evaluate(GRPOSettings(advantage_std=False), logprobs, credited)[0]
    torch.testing.assert_close(with_penalty, without)


def test_samples_without_a_reward_change_no_other():
    rewards, groups = torch.tensor([1.0, 0.0, 9.0, 0.5]), torch.tensor([0, 0, 0, 1])
    scored = torch.tensor([True, True, False, True])
    for divide in (True, False):
        got = group_advantages(rewards, groups, divide_by_std=divide, scored=scored)
        alone = group_advantages(rewards[:2], groups[:2], divide_by_std=divide)
        assert torch.equal(got, torch.cat([alone, torch.zeros(2)]))
