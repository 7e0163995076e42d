"""REINFORCE++: a KL penalty at each token, and advantages normalised over all tokens of the step.

https://arxiv.org/abs/2501.03262: `A[t] = reward - kl_coef * sum of the KL from t on`, then normalised. Its baseline
variant subtracts the mean reward of the group first (`algorithm.group_baseline`), and has its penalty in the loss (k2).
"""

import torch
from torch import Tensor

from pentad.algorithms.advantages import group_advantages
from pentad.algorithms.gae import gae
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.algorithms.reduction import at_last_token
from pentad.config.schema.algorithms.reinforce_pp import ReinforcePPSettings
from pentad.samples.batch import Batch


class ReinforcePP(PolicyGradient[ReinforcePPSettings]):
    """The algorithm."""

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        columns = batch.per_sequence
        if self.settings.group_baseline:
            rewards = group_advantages(rewards, columns["group_ids"], divide_by_std=False, scored=columns.get("scored"))
        per_token = at_last_token(rewards, batch)
        if kl is not None:
            per_token = per_token - self.kl.value * kl
        # Without values it is the sum of what is still to come.
        advantages, _ = gae(per_token, torch.zeros(batch.num_tokens), batch, gamma=1.0, gae_lambda=1.0)
        return batch.with_per_token("advantages", advantages)
