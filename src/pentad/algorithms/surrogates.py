"""The policy-gradient term of a token, in its kinds.

Invariant: log-ratios are bounded before `exp`, so nothing overflows. A surrogate looks at whole sequences only.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pentad.algorithms.kl import clamped
from pentad.algorithms.reduction import mean_over_sequences
from pentad.config.schema.algorithms.policy_gradient import PolicyGradientSettings
from pentad.samples.batch import Batch


class Surrogate(NamedTuple):
    """Of each token.

    Attributes:
        loss: `[t]`, differentiable.
        clipped: `[t]`, 1 where a bound decides, else 0.
    """

    loss: Tensor
    clipped: Tensor


class SurrogateFunction(Protocol):
    """A kind of surrogate; a function at the top level of a module, as it is pickled."""

    def __call__(self, logprobs: Tensor, batch: Batch, settings: PolicyGradientSettings) -> Surrogate:
        """
        Args:
            logprobs: of the policy that is trained, `[t]`, differentiable.
            batch: with `old_logprobs` and `advantages`.
        """
        ...


def clipped_ratio(logprobs: Tensor, batch: Batch, settings: PolicyGradientSettings) -> Surrogate:
    """`-min(r A, clip(r) A)` with r of each token; PPO, https://arxiv.org/abs/1707.06347, equation 7.

    Separate bounds are DAPO's, https://arxiv.org/abs/2503.14476, equation 8.
    """
    ratio = clamped(logprobs - batch.per_token["old_logprobs"]).exp()
    return _smaller(ratio, batch.per_token["advantages"], settings)


def clipped_sequence_ratio(logprobs: Tensor, batch: Batch, settings: PolicyGradientSettings) -> Surrogate:
    """The same with r of the whole sequence to the power of 1 / length, at each of its tokens.

    GSPO, https://arxiv.org/abs/2507.18071, equations 5 and 7. The mean over a sequence's tokens is its term there.
    """
    log_ratio = mean_over_sequences(logprobs - batch.per_token["old_logprobs"], batch)
    ratio = clamped(log_ratio).exp()[batch.sequence_ids()]
    return _smaller(ratio, batch.per_token["advantages"], settings)


def clipped_weight(logprobs: Tensor, batch: Batch, settings: PolicyGradientSettings) -> Surrogate:
    """`-clip(r) A log p`, where `clip(r)` is a constant; CISPO, https://arxiv.org/abs/2506.13585, equations 4 and 5.

    Every token has a gradient, however far its ratio is.
    """
    ratio = clamped(logprobs.detach() - batch.per_token["old_logprobs"]).exp()
    weight = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return Surrogate(-weight * batch.per_token["advantages"] * logprobs, (weight != ratio).float())


def _smaller(ratio: Tensor, advantages: Tensor, settings: PolicyGradientSettings) -> Surrogate:
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantages
    return Surrogate(-torch.minimum(unclipped, clipped), (clipped < unclipped).float())
