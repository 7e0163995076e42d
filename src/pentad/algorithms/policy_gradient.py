"""What algorithms with a policy gradient share: which groups are trained on, what is made of rewards, and the loss.

Invariant: an algorithm is its `assign`, which makes advantages of rewards, and its `surrogate`; everything else is
here. The columns are read once, before the first optimizer step on a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pentad.algorithms.advantages import normalized
from pentad.algorithms.kl import KLCoefficient, kl_estimate
from pentad.algorithms.policy_loss import PolicyLoss
from pentad.algorithms.protocol import Loss
from pentad.algorithms.reduction import without_truncated
from pentad.algorithms.rewards import rewards_differ, shaped_rewards
from pentad.algorithms.surrogates import SurrogateFunction, clipped_ratio
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.algorithms.policy_gradient import PolicyGradientSettings
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory


class PolicyGradient[S: PolicyGradientSettings]:
    """The base of these algorithms.

    Args:
        settings: of the algorithm.
        max_response_tokens: `rollout.max_response_tokens`; needed for the mean `constant` and the cost of length.

    Attributes:
        surrogate: the policy-gradient term of a token.
        kl: the weight of the KL penalty now.
    """

    surrogate: ClassVar[SurrogateFunction] = staticmethod(clipped_ratio)

    def __init__(self, settings: S, max_response_tokens: int | None = None) -> None:
        self.settings, self.max_response_tokens = settings, max_response_tokens
        self.kl = KLCoefficient(settings.kl_coef, settings.kl_target, settings.kl_gain)

    def assign(self, batch: Batch, rewards: Tensor, kl: Tensor | None) -> Batch:
        """The batch with `advantages`, float32 `[T]`.

        Args:
            rewards: float64 `[S]`; what stands at a sample that was not scored is not read.
            kl: float64 `[T]`, to be taken from the reward, times the coefficient; None where it is not.
        """
        raise NotImplementedError

    def admit(self, group: Sequence[Trajectory]) -> bool:
        return not self.settings.dynamic_sampling or rewards_differ(group)

    def credit(self, batch: Batch) -> Batch:
        """Adds `advantages`, float32 `[T]`, and where the KL coefficient is adapted `kl_coef`, float32 `[S]`."""
        settings = self.settings
        rewards = shaped_rewards(batch, settings, self.max_response_tokens)
        if settings.overlong_filter:
            batch = without_truncated(batch)
        kl = None
        if settings.penalizes_reward or self.kl.adapts:
            columns = batch.per_token
            kl = kl_estimate(columns["old_logprobs"].double(), columns["ref_logprobs"].double(), settings.kl_estimator)
        batch = self.assign(batch, rewards, kl if settings.penalizes_reward else None)
        if settings.normalize_advantages:
            advantages = normalized(batch.per_token["advantages"], batch.loss_mask)
            batch = batch.with_per_token("advantages", advantages.float())
        if kl is not None and self.kl.adapts:
            batch = batch.with_per_sequence("kl_coef", torch.full((batch.num_sequences,), self.kl.value))
            if bool(batch.loss_mask.any()):
                self.kl.update(float(kl[batch.loss_mask].mean()))
        return batch

    def penalized(self, rewards: Tensor, kl: Tensor | None, batch: Batch) -> Tensor:
        """Rewards `[S]` less the KL penalty of the whole response, also where that has no loss; `kl` is 0 elsewhere."""
        if kl is None:
            return rewards
        return rewards - self.kl.value * kl.new_zeros(batch.num_sequences).index_add(0, batch.sequence_ids(), kl)

    def losses(self) -> Mapping[Role, Loss]:
        return {"policy": PolicyLoss(self.settings, type(self).surrogate, self.max_response_tokens)}

    def state_dict(self) -> dict[str, Any]:
        return {"kl_coef": self.kl.value} if self.kl.adapts else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.kl.adapts:
            self.kl.value = state.get("kl_coef", self.kl.value)
