"""Advantages from rewards, of samples that are compared with each other.

Invariant: a sample that was not scored has advantage 0 and does not change that of the others.
"""

import torch
from torch import Tensor

from pentad.algorithms.reduction import spread_over_tokens
from pentad.samples.batch import Batch

_EPSILON = 1e-6


def group_advantages(
    rewards: Tensor, group_ids: Tensor, *, divide_by_std: bool, scored: Tensor | None = None
) -> Tensor:
    """`(r - mean of its group) / (std of its group)`; https://arxiv.org/abs/2402.03300, equation after (3).

    Args:
        rewards: any float `[S]`.
        group_ids: int64 `[S]`, equal for samples of one prompt.
        divide_by_std: divide by the group's (unbiased) standard deviation; a group of equal rewards gives 0.
        scored: bool `[S]`, False for samples without a reward; None if all have one.

    Returns:
        float32 `[S]`.
    """
    _, group = torch.unique(group_ids, return_inverse=True)
    exact = rewards.double()
    weights = torch.ones_like(exact) if scored is None else scored.double()
    nothing = exact.new_zeros(int(group.max()) + 1)
    count = nothing.index_add(0, group, weights)
    mean = nothing.index_add(0, group, exact * weights) / count.clamp(min=1)
    centred = (exact - mean[group]) * weights
    # The rounding of the mean of equal rewards would be blown up by the division.
    kept = weights > 0
    highest = torch.full_like(nothing, -torch.inf).scatter_reduce(0, group[kept], exact[kept], "amax")
    lowest = torch.full_like(nothing, torch.inf).scatter_reduce(0, group[kept], exact[kept], "amin")
    centred = centred * (highest > lowest)[group]
    if not divide_by_std:
        return centred.float()
    variance = nothing.index_add(0, group, centred**2) / (count - 1).clamp(min=1)
    return (centred / (variance.sqrt()[group] + _EPSILON)).float()


def with_group_advantages(batch: Batch, rewards: Tensor, *, divide_by_std: bool) -> Batch:
    """The batch with `advantages`, float32 `[T]`: at each trained token that of its sequence.

    Args:
        rewards: any float `[S]`.
    """
    columns = batch.per_sequence
    advantages = group_advantages(
        rewards, columns["group_ids"], divide_by_std=divide_by_std, scored=columns.get("scored")
    )
    return batch.with_per_token("advantages", spread_over_tokens(advantages, batch))


def leave_one_out_advantages(rewards: Tensor, group_ids: Tensor, *, scored: Tensor | None = None) -> Tensor:
    """`r - mean of the other rewards of its group`; https://arxiv.org/abs/2402.14740, section 2.2.

    A sample without others has advantage 0.

    Args:
        rewards, group_ids, scored: as for `group_advantages`.

    Returns:
        float32 `[S]`.
    """
    _, group = torch.unique(group_ids, return_inverse=True)
    weights = torch.ones_like(rewards, dtype=torch.float64) if scored is None else scored.double()
    count = weights.new_zeros(int(group.max()) + 1).index_add(0, group, weights)[group]
    centred = group_advantages(rewards, group_ids, divide_by_std=False, scored=scored).double()
    # r - (sum - r) / (n - 1) is n / (n - 1) times r - sum / n.
    return (centred * count / (count - 1).clamp(min=1)).float()


def normalized(values: Tensor, kept: Tensor) -> Tensor:
    """`(value - mean) / (std + 1e-6)` over the entries that are kept, with the unbiased deviation; 0 elsewhere.

    Args:
        values: any float `[N]`.
        kept: bool `[N]`.

    Returns:
        float64 `[N]`.
    """
    weights = kept.double()
    count = weights.sum()
    exact = values.double()
    if not bool(kept.any()) or bool(exact[kept].max() == exact[kept].min()):
        return torch.zeros_like(exact)  # and not the rounding of the mean, divided by next to nothing
    centred = (exact - (exact * weights).sum() / count.clamp(min=1)) * weights
    deviation = ((centred**2).sum() / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + _EPSILON)
