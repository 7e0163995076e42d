"""Group sequence policy optimisation: ratio and clipping of whole sequences.

https://arxiv.org/abs/2507.18071, equations 5 and 7. Advantages are GRPO's.
"""

from torch import Tensor

from pentad.algorithms.advantages import with_group_advantages
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.algorithms.surrogates import clipped_sequence_ratio
from pentad.config.schema.algorithms.gspo import GSPOSettings
from pentad.samples.batch import Batch


class GSPO(PolicyGradient[GSPOSettings]):
    """The algorithm."""

    surrogate = staticmethod(clipped_sequence_ratio)

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        rewards = self.penalized(rewards, kl, batch)
        return with_group_advantages(batch, rewards, divide_by_std=self.settings.advantage_std)
