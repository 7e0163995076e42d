"""Divergence between two policies, estimated from tokens that one of them sampled, and its weight.

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


class KLCoefficient:
    """The weight of the KL penalty: fixed, or adapted so that the KL comes near a target.

    https://arxiv.org/abs/1909.08593, section 2.2: `e = clip(KL / target - 1, -0.2, 0.2)`, `coef <- coef (1 + gain e)`.
    There the KL is that of a whole response; here it is the mean per token.

    Args:
        value: to begin with.
        target: in nats per token; None keeps the value as it is.
        gain: K_beta.

    Attributes:
        value: the coefficient now.
    """

    def __init__(self, value: float, target: float | None, gain: float) -> None:
        self.value, self._target, self._gain = value, target, gain

    @property
    def adapts(self) -> bool:
        """Whether it changes."""
        return self._target is not None

    def update(self, measured: float) -> None:
        """Adapt it to the KL that a batch showed, in nats per token."""
        if self._target is not None:
            error = min(max(measured / self._target - 1, -0.2), 0.2)
            self.value *= 1 + self._gain * error
