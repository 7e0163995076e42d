"""Divergence between two policies, estimated from tokens that one of them sampled.

Invariant: nothing here overflows. Log-ratios are clamped to [-20, 20] before `exp`; beyond that the gradient is 0.
"""

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

LOG_RATIO_BOUND = 20.0


def clamped(log_ratio: Tensor) -> Tensor:
    """A log-ratio of which `exp` is finite, and stays finite when it is multiplied."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled.

    http://joschu.net/blog/kl-approx.html, with r = reference / policy: k1 = -log r, k2 = (log r)^2 / 2,
    k3 = r - 1 - log r.

    As values, k1 and k3 are unbiased. As terms of a loss, what counts is the gradient for tokens sampled by the policy:
    k1 has the gradient of the log-prob, which is 0 on average; k2 that of KL(policy || reference); k3 that of
    KL(reference || policy).

    Args:
        logprobs, reference: float32 `[t]`.

    Returns:
        float32 `[t]`.
    """
    log_ratio = clamped(reference - logprobs)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    return log_ratio.exp() - 1 - log_ratio
