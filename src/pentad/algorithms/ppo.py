"""Proximal policy optimisation: advantages are errors of a critic, which is trained beside the policy.

https://arxiv.org/abs/1707.06347, equation 7, with generalised advantage estimation (https://arxiv.org/abs/1506.02438).
The KL penalty at each token is part of its reward, with a fixed or adapted coefficient (https://arxiv.org/abs/1909.08593).
"""

from collections.abc import Mapping

from torch import Tensor

from pentad.algorithms.gae import gae
from pentad.algorithms.policy_gradient import PolicyGradient
from pentad.algorithms.protocol import Loss
from pentad.algorithms.reduction import at_last_token
from pentad.algorithms.value_loss import ValueLoss
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.algorithms.ppo import PPOSettings
from pentad.samples.batch import Batch


class PPO(PolicyGradient[PPOSettings]):
    """The algorithm."""

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        """Adds `advantages` and `returns`, float32 `[T]`."""
        settings, per_token = self.settings, at_last_token(rewards, batch)
        if kl is not None:
            per_token = per_token - self.kl.value * kl
        values = batch.per_token["values"]
        advantages, returns = gae(per_token, values, batch, gamma=settings.gamma, gae_lambda=settings.gae_lambda)
        return batch.with_per_token("advantages", advantages).with_per_token("returns", returns)

    def losses(self) -> Mapping[Role, Loss]:
        return {**super().losses(), "critic": ValueLoss(self.settings)}
