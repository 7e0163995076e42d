"""What is made of rewards before advantages: the cost of length, normalisation, clipping.

Invariant: with default settings rewards stay as they are. A sample that was not scored changes no other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pentad.algorithms.advantages import normalized
from pentad.algorithms.reduction import sum_over_sequences
from pentad.config.schema.algorithms.policy_gradient import PolicyGradientSettings
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory


def shaped_rewards(batch: Batch, settings: PolicyGradientSettings, max_response_tokens: int | None) -> Tensor:
    """float64 `[S]`: the rewards with the cost of length, then normalised over the batch, then clipped."""
    rewards = batch.per_sequence["rewards"].double()
    scored = batch.per_sequence.get("scored", torch.ones_like(rewards, dtype=torch.bool))
    if settings.overlong_buffer > 0:
        if max_response_tokens is None:
            raise ValueError("the cost of length needs the length of the longest response")
        lengths = sum_over_sequences(torch.ones(batch.num_tokens, dtype=torch.float64), batch)
        buffer = settings.overlong_buffer * max_response_tokens
        rewards = rewards + settings.overlong_penalty * overlong_cost(lengths, max_response_tokens, buffer)
    if settings.normalize_rewards:
        rewards = normalized(rewards, scored)
    if settings.reward_clip is not None:
        rewards = rewards.clamp(-settings.reward_clip, settings.reward_clip)
    return rewards


def overlong_cost(lengths: Tensor, longest: float, buffer: float) -> Tensor:
    """0 up to `longest - buffer` tokens, then falling linearly to -1; https://arxiv.org/abs/2503.14476, equation 13.

    Args:
        lengths: of responses, float `[S]`.
    """
    return ((longest - buffer - lengths) / buffer).clamp(-1, 0)


def rewards_differ(group: Sequence[Trajectory]) -> bool:
    """Whether two scored samples of a group have different rewards; DAPO, equation 11."""
    return len({trajectory.reward for trajectory in group if trajectory.status != "failed"}) > 1
