"""Advantages from rewards.

Invariant: a sample that was not scored has advantage 0 and does not change that of the others.
"""

import torch
from torch import Tensor

_EPSILON = 1e-6


def group_advantages(
    rewards: Tensor, group_ids: Tensor, *, divide_by_std: bool, scored: Tensor | None = None
) -> Tensor:
    """`(r - mean of its group) / (std of its group)`; https://arxiv.org/abs/2402.03300, equation after (3).

    Args:
        rewards: float32 `[S]`.
        group_ids: int64 `[S]`, equal for samples of one prompt.
        divide_by_std: divide by the group's (unbiased) standard deviation; a group of equal rewards gives 0.
        scored: bool `[S]`, False for samples without a reward; None if all have one.

    Returns:
        float32 `[S]`.
    """
    _, group = torch.unique(group_ids, return_inverse=True)
    # In float64 the mean of equal float32 rewards is exactly that reward; a rounded one would be blown up below.
    exact = rewards.double()
    weights = torch.ones_like(exact) if scored is None else scored.double()
    nothing = exact.new_zeros(int(group.max()) + 1)
    count = nothing.index_add(0, group, weights)
    mean = nothing.index_add(0, group, exact * weights) / count.clamp(min=1)
    centred = (exact - mean[group]) * weights
    if not divide_by_std:
        return centred.float()
    variance = nothing.index_add(0, group, centred**2) / (count - 1).clamp(min=1)
    return (centred / (variance.sqrt()[group] + _EPSILON)).float()
