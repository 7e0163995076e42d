"""Losses and advantages, written from the papers in float64, one token and one group at a time.

Invariant: nothing of Pentad is imported here, and nothing is vectorised over sequences, so that a fault of the package
cannot stand on both sides of a comparison.
"""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

_EPSILON = 1e-6


def advantages(rewards: Sequence[float], groups: Sequence[Hashable], *, divide_by_std: bool = True) -> list[float]:
    """`(r - mean) / (std + 1e-6)` within each group, with the unbiased deviation: DeepSeekMath,
    https://arxiv.org/abs/2402.03300, section 4.1.2. Without the division: https://arxiv.org/abs/2503.20783.

    A group of one sample, or of equal rewards, has no advantage.
    """
    found = []
    for reward, group in zip(rewards, groups, strict=True):
        mine = [other for other, its in zip(rewards, groups, strict=True) if its == group]
        mean = math.fsum(mine) / len(mine)
        if len(set(mine)) == 1:
            found.append(0.0)
        elif divide_by_std:
            deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in mine) / (len(mine) - 1))
            found.append((reward - mean) / (deviation + _EPSILON))
        else:
            found.append(reward - mean)
    return found


def clipped(logprob: Tensor, old: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """The loss of one token: minus the smaller of two surrogates, https://arxiv.org/abs/1707.06347, eq. 7.

    The two bounds: https://arxiv.org/abs/2503.14476, eq. 8.
    """
    ratio = torch.exp(logprob - old)
    # Where the clip binds, the smaller one is a constant.
    if advantage >= 0 and ratio.item() > 1 + high:
        return logprob.new_tensor(-(1 + high) * advantage)
    if advantage < 0 and ratio.item() < 1 - low:
        return logprob.new_tensor(-(1 - low) * advantage)
    return -ratio * advantage


def kl(logprob: Tensor, reference: Tensor, estimator: str = "k3") -> Tensor:
    """http://joschu.net/blog/kl-approx.html, of one token that the policy sampled."""
    ratio = torch.exp(reference - logprob)
    if estimator == "k1":
        return -torch.log(ratio)
    if estimator == "k2":
        return torch.log(ratio) ** 2 / 2
    return ratio - 1 - torch.log(ratio)


def mean(sequences: Sequence[Sequence[Tensor]], over: str) -> Tensor:
    """Of the losses of each sequence's trained tokens.

    Args:
        over: `token`: of all tokens alike; `sequence`: of the means of sequences, 0 for one without tokens.
    """
    if over == "token":
        return torch.stack([token for sequence in sequences for token in sequence]).mean()
    parts = [torch.stack(list(sequence)).mean() for sequence in sequences if sequence]
    return torch.stack(parts).sum() / len(sequences)


def grpo(
    logprobs: Sequence[Tensor],
    old: Sequence[Tensor],
    advantages: Sequence[float],
    *,
    low: float = 0.2,
    high: float = 0.2,
    reference: Sequence[Tensor] | None = None,
    kl_coef: float = 0.0,
    estimator: str = "k3",
    over: str = "token",
) -> Tensor:
    """The loss of a minibatch: DeepSeekMath, eq. 3 (a mean over sequences), or DAPO's (over tokens).

    Args:
        logprobs: of the trained tokens of each sequence, `[R]`, any float dtype; differentiable.
        old, reference: as `logprobs`.
        advantages: one a sequence.
    """
    sequences = []
    for number, (mine, its_old) in enumerate(zip(logprobs, old, strict=True)):
        tokens = []
        for place in range(len(mine)):
            one = mine[place].double()
            term = clipped(one, its_old[place].double(), advantages[number], low, high)
            if kl_coef:
                assert reference is not None
                term = term + kl_coef * kl(one, reference[number][place].double(), estimator)
            tokens.append(term)
        sequences.append(tokens)
    return mean(sequences, over)


def sft(logprobs: Sequence[Tensor], *, over: str = "token") -> Tensor:
    """The negative log-likelihood of each sequence's trained tokens, `[R]`."""
    return mean([[-one.double() for one in mine] for mine in logprobs], over)
