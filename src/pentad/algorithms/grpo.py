"""Group-relative policy optimisation: advantages within a prompt's group, clipped ratio, optional KL penalty.

DeepSeekMath, https://arxiv.org/abs/2402.03300, equation 3, with the mean over all tokens of DAPO by default
(`algorithm.loss_mean: sequence` is the paper's).
"""

from torch import Tensor

from pentad.algorithms.advantages import with_group_advantages
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.config.schema.algorithms.grpo import GRPOSettings
from pentad.samples.batch import Batch


class GRPO(PolicyGradient[GRPOSettings]):
    """The algorithm."""

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        rewards = self.penalized(rewards, kl, batch)
        return with_group_advantages(batch, rewards, divide_by_std=self.settings.advantage_std)
