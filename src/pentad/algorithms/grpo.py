"""Group-relative policy optimisation: advantages within a prompt's group, clipped ratio, optional KL penalty.

DeepSeekMath, https://arxiv.org/abs/2402.03300; without the division by the deviation and with token-mean it is
Dr. GRPO, https://arxiv.org/abs/2503.20783; separate clip bounds are DAPO's, https://arxiv.org/abs/2503.14476.
"""

from typing import Literal

import torch
from torch import Tensor

from pentad.algorithms.reduction import token_weights
from pentad.config.schema.algorithm import AlgorithmSettings
from pentad.samples.batch import Batch

_EPSILON = 1e-6


def group_advantages(rewards: Tensor, group_ids: Tensor, *, divide_by_std: bool) -> Tensor:
    """`(r - mean of its group) / (std of its group)`.

    Args:
        rewards: float32 `[S]`.
        group_ids: int64 `[S]`, equal for samples of one prompt.
        divide_by_std: divide by the group's (unbiased) standard deviation; a group of equal rewards gives 0.

    Returns:
        float32 `[S]`.
    """
    _, group = torch.unique(group_ids, return_inverse=True)
    # In float64 the mean of equal float32 rewards is exactly that reward; a rounded one would be blown up below.
    exact = rewards.double()
    nothing = exact.new_zeros(int(group.max()) + 1)
    count = nothing.index_add(0, group, torch.ones_like(exact))
    mean = nothing.index_add(0, group, exact) / count
    centred = exact - mean[group]
    if not divide_by_std:
        return centred.float()
    variance = nothing.index_add(0, group, centred**2) / (count - 1).clamp(min=1)
    return (centred / (variance.sqrt()[group] + _EPSILON)).float()


def spread_over_tokens(values: Tensor, batch: Batch) -> Tensor:
    """One value a sequence `[S]` to one a token `[T]`; 0 outside the loss mask."""
    return values[batch.sequence_ids()] * batch.loss_mask


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy.

    http://joschu.net/blog/kl-approx.html: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r, with
    r = reference / policy.

    Args:
        logprobs, reference: float32 `[t]`.
    """
    log_ratio = reference - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    return log_ratio.exp() - 1 - log_ratio


class GRPOLoss:
    """The clipped surrogate, plus `kl_coef` times the KL estimate.

    Needs `per_token` old_logprobs and advantages, and ref_logprobs where kl_coef > 0.
    """

    def __init__(self, settings: AlgorithmSettings) -> None:
        self.settings = settings
        self.normalizer: Literal["tokens", "sequences"] = "tokens" if settings.loss_mean == "token" else "sequences"

    def __call__(self, logprobs: Tensor, microbatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        settings, mask = self.settings, microbatch.loss_mask
        old, advantages = microbatch.per_token["old_logprobs"], microbatch.per_token["advantages"]
        log_ratio = logprobs - old
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        surrogate = torch.minimum(ratio * advantages, clipped * advantages)
        per_token = -surrogate
        metrics = {
            "train/clip_fraction": ((ratio - clipped) != 0).float(),
            "train/policy_kl": kl_estimate(logprobs.detach(), old, "k3") * mask,
        }
        if settings.kl_coef > 0:
            kl = kl_estimate(logprobs, microbatch.per_token["ref_logprobs"], settings.kl_estimator)
            per_token = per_token + settings.kl_coef * kl
            metrics["train/kl"] = kl
        weights = token_weights(microbatch, self.normalizer)
        sums = {name: (value.detach() * mask).sum() for name, value in metrics.items()}
        return (per_token * weights).sum(), sums
