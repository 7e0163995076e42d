"""Credit and losses of the algorithms with a policy gradient, in plain loops over samples and tokens, in float64.

Invariant: nothing of Pentad is imported here. `options` are the settings of an algorithm as a plain mapping.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import losses
import torch
from torch import Tensor

_EPSILON = 1e-6
_GROUP_STD = {"grpo", "dapo", "gspo", "cispo"}


@dataclass(frozen=True)
class Sample:
    """One sample; its lists have a number for each trained token."""

    group: int
    reward: float
    scored: bool
    truncated: bool
    old: list[float]
    reference: list[float]
    values: list[float]

    def kept(self, options: Mapping[str, Any]) -> bool:
        """Whether it is trained on."""
        return self.scored and not (options["overlong_filter"] and self.truncated)


def normalize(numbers: Sequence[float]) -> list[float]:
    """Less the mean, by the unbiased deviation; equal numbers give 0."""
    if len(set(numbers)) <= 1:
        return [0.0] * len(numbers)
    mean = math.fsum(numbers) / max(1, len(numbers))
    variance = math.fsum((one - mean) ** 2 for one in numbers) / max(1, len(numbers) - 1)
    return [(one - mean) / (math.sqrt(variance) + _EPSILON) for one in numbers]


def shaped(samples: Sequence[Sample], options: Mapping[str, Any], longest: int) -> list[float]:
    """Rewards of the scored samples: cost of length (DAPO, eq. 13), normalised over all, clipped."""
    rewards = []
    for sample in samples:
        reward, length = sample.reward, len(sample.old)
        buffer = options["overlong_buffer"] * longest
        if buffer and length > longest:
            reward -= options["overlong_penalty"]
        elif buffer and length > longest - buffer:
            reward += options["overlong_penalty"] * ((longest - buffer) - length) / buffer
        rewards.append(reward)
    if options["normalize_rewards"]:
        rewards = normalize(rewards)
    if options["reward_clip"] is not None:
        rewards = [max(-options["reward_clip"], min(options["reward_clip"], reward)) for reward in rewards]
    return rewards


def kl(sample: Sample, options: Mapping[str, Any]) -> list[float]:
    """Of the policy before the step, at each token."""
    pairs = zip(torch.tensor(sample.old).double(), torch.tensor(sample.reference).double(), strict=True)
    return [losses.kl(old, reference, options["kl_estimator"]).item() for old, reference in pairs]


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """Of one sequence: the sum of discounted temporal differences as it is defined (eq. 16), not by recursion."""
    count = len(rewards)
    after = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * after[t] - values[t] for t in range(count)]
    advantages = [math.fsum((gamma * lam) ** (u - t) * delta[u] for u in range(t, count)) for t in range(count)]
    return advantages, [advantage + value for advantage, value in zip(advantages, values, strict=True)]


def credit(
    samples: Sequence[Sample], options: Mapping[str, Any], longest: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and (PPO) returns of each trained token of each sample; zeros for samples that are not trained on."""
    name, scored = options["name"], [sample for sample in samples if sample.scored]
    rewards = dict(zip(map(id, scored), shaped(scored, options, longest), strict=True))
    penalised = options["kl_coef"] > 0 and options["kl_in"] == "reward"
    advantages, returns = [], []
    for sample in samples:
        kept = sample.kept(options)
        # A sample that is left out adds no penalty to its own reward.
        penalty = [options["kl_coef"] * one if penalised and kept else 0.0 for one in kl(sample, options)]
        mine: list[float] = [0.0] * len(sample.old)
        wanted = mine
        if kept:
            group = [other for other in scored if other.group == sample.group]
            whole = {
                id(other): rewards[id(other)]
                - (
                    options["kl_coef"] * math.fsum(kl(other, options))
                    if penalised and other.kept(options)
                    else 0.0
                )
                for other in group
            }  # fmt: skip
            if name in _GROUP_STD | {"dr_grpo"}:
                divide = options.get("advantage_std", name != "dr_grpo")
                place = [id(other) for other in group].index(id(sample))
                mine = [losses.advantages(list(whole.values()), [0] * len(group), divide_by_std=divide)[place]] * len(
                    sample.old
                )
            elif name == "rloo":
                others = [whole[id(other)] for other in group if other is not sample]
                baseline = math.fsum(others) / len(others) if others else whole[id(sample)]
                mine = [whole[id(sample)] - baseline] * len(sample.old)
            elif name == "reinforce_pp":
                reward = rewards[id(sample)]
                if options["group_baseline"]:
                    reward -= math.fsum(rewards[id(other)] for other in group) / len(group)
                mine = [reward - math.fsum(penalty[t:]) for t in range(len(sample.old))]
            elif sample.old:
                given = [-one for one in penalty]
                given[-1] += rewards[id(sample)]
                mine, wanted = gae(given, sample.values, options["gamma"], options["gae_lambda"])
        advantages.append(mine)
        returns.append(wanted)
    if options["normalize_advantages"]:
        kept = [sample.kept(options) for sample in samples]
        flat = iter(normalize([one for mine, yes in zip(advantages, kept, strict=True) if yes for one in mine]))
        advantages = [[next(flat) if yes else 0.0 for _ in mine] for mine, yes in zip(advantages, kept, strict=True)]
    return advantages, returns


def policy_loss(
    samples: Sequence[Sample],
    advantages: Sequence[Sequence[float]],
    logprobs: Sequence[Tensor],
    entropies: Sequence[Tensor],
    weights: Sequence[Sequence[float]],
    options: Mapping[str, Any],
    longest: int,
    coefficient: float,
) -> Tensor:
    """The loss of a minibatch.

    Args:
        logprobs, entropies: float64 `[R]` of each sample, differentiable.
        weights: correction of each token.
        coefficient: of the KL penalty.
    """
    low, high = options["clip_low"], options["clip_high"]
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    kept = [number for number, sample in enumerate(samples) if sample.kept(options)]
    for number in kept:
        sample, mine = samples[number], logprobs[number]
        terms = []
        for t in range(len(sample.old)):
            advantage, old = advantages[number][t], torch.tensor(sample.old[t], dtype=torch.float64)
            if options["name"] == "gspo":
                length = len(sample.old)
                mean = sum(mine[u] - sample.old[u] for u in range(length)) / length
                term = losses.clipped(mean, torch.zeros((), dtype=torch.float64), advantage, low, high)
            elif options["name"] == "cispo":
                ratio = math.exp(mine[t].item() - sample.old[t])
                term = -min(max(ratio, 1 - low), 1 + high) * advantage * mine[t]
            else:
                term = losses.clipped(mine[t], old, advantage, low, high)
            term = term * weights[number][t]
            if options["kl_coef"] > 0 and options["kl_in"] == "loss":
                reference = torch.tensor(sample.reference[t], dtype=torch.float64)
                term = term + coefficient * losses.kl(mine[t], reference, options["kl_estimator"])
            terms.append(term - options["entropy_coef"] * entropies[number][t])
        tokens += len(terms)
        if terms:
            total = total + sum(terms) / (len(terms) if options["loss_mean"] == "sequence" else 1)
    sequences = max(1, len(kept))
    return (
        total / {"token": max(1, tokens), "sequence": sequences, "constant": sequences * longest}[options["loss_mean"]]
    )


def value_loss(
    samples: Sequence[Sample],
    returns: Sequence[Sequence[float]],
    values: Sequence[Tensor],
    options: Mapping[str, Any],
) -> Tensor:
    """Half the squared error, of the farther of value and bounded value."""
    terms = []
    for number, sample in enumerate(samples):
        for t in range(len(sample.old) if sample.kept(options) else 0):
            value, clip, old = values[number][t], options["value_clip"], sample.values[t]
            error = (value - returns[number][t]) ** 2
            if clip is not None:
                moved = value - old
                bounded = value if abs(moved.item()) <= clip else torch.tensor(old + math.copysign(clip, moved.item()))
                other = (bounded - returns[number][t]) ** 2
                error = other if other.item() > error.item() else error
            terms.append(error / 2)
    return sum(terms, torch.zeros((), dtype=torch.float64)) / max(1, len(terms))


def adapted(coefficient: float, samples: Sequence[Sample], options: Mapping[str, Any]) -> float:
    """The KL coefficient after a batch; https://arxiv.org/abs/1909.08593, section 2.2, with the KL of a token."""
    measured = [one for sample in samples if sample.kept(options) for one in kl(sample, options)]
    if not measured or options["kl_target"] is None:
        return coefficient
    error = math.fsum(measured) / len(measured) / options["kl_target"] - 1
    return coefficient * (1 + options["kl_gain"] * max(-0.2, min(0.2, error)))
