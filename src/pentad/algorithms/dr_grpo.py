"""GRPO done right: no division by the group's deviation, nor by the length of a response.

https://arxiv.org/abs/2503.20783, section 3.2: the loss of all tokens is divided by a constant, here the number of
sequences times the length of the longest response.
"""

from torch import Tensor

from pentad.algorithms.advantages import with_group_advantages
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.config.schema.algorithms.dr_grpo import DrGRPOSettings
from pentad.samples.batch import Batch


class DrGRPO(PolicyGradient[DrGRPOSettings]):
    """The algorithm."""

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        return with_group_advantages(batch, self.penalized(rewards, kl, batch), divide_by_std=False)
