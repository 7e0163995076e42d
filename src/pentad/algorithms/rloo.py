"""REINFORCE leave-one-out: the baseline of a sample is the mean reward of the others.

https://arxiv.org/abs/2402.14740, section 2.2; the KL penalty of the whole response is taken from its reward (equation
2). There each batch is used for one optimizer step, in which the clipped ratio has the gradient of REINFORCE.
"""

from torch import Tensor

from pentad.algorithms.advantages import leave_one_out_advantages
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.algorithms.reduction import spread_over_tokens
from pentad.config.schema.algorithms.rloo import RLOOSettings
from pentad.samples.batch import Batch


class RLOO(PolicyGradient[RLOOSettings]):
    """The algorithm."""

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        columns = batch.per_sequence
        advantages = leave_one_out_advantages(
            self.penalized(rewards, kl, batch), columns["group_ids"], scored=columns.get("scored")
        )
        return batch.with_per_token("advantages", spread_over_tokens(advantages, batch))
