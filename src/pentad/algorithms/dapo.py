"""Decoupled clip and dynamic sampling policy optimisation.

https://arxiv.org/abs/2503.14476: equation 8 (clip bounds, mean over all tokens), equation 11 (groups of equal rewards
are left out), equation 13 (cost of length). Its overlong filter (section 3.4) is `algorithm.overlong_filter`.
"""

from torch import Tensor

from pentad.algorithms.advantages import with_group_advantages
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.config.schema.algorithms.dapo import DAPOSettings
from pentad.samples.batch import Batch


class DAPO(PolicyGradient[DAPOSettings]):
    """The algorithm."""

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        return with_group_advantages(batch, self.penalized(rewards, kl, batch), divide_by_std=True)
