"""Clipped importance-sampling policy optimisation: the ratio is a clipped constant weight, so no token is lost.

MiniMax-M1, https://arxiv.org/abs/2506.13585, equations 4 and 5. Advantages are GRPO's; there is no bound from below by
default, as there.
"""

from torch import Tensor

from pentad.algorithms.advantages import with_group_advantages
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.algorithms.surrogates import clipped_weight
from pentad.config.schema.algorithms.cispo import CISPOSettings
from pentad.samples.batch import Batch


class CISPO(PolicyGradient[CISPOSettings]):
    """The algorithm."""

    surrogate = staticmethod(clipped_weight)

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        rewards = self.penalized(rewards, kl, batch)
        return with_group_advantages(batch, rewards, divide_by_std=self.settings.advantage_std)
