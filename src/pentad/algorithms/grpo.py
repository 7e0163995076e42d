"""Group-relative policy optimisation: advantages within a prompt's group, clipped ratio, optional KL penalty.

DeepSeekMath, https://arxiv.org/abs/2402.03300. Separate clip bounds are DAPO's, https://arxiv.org/abs/2503.14476.
Without the division by the deviation the advantages are those of Dr. GRPO, https://arxiv.org/abs/2503.20783, whose loss
divides by a constant; the means here divide by the number of tokens or of sequences.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pentad.algorithms.advantages import group_advantages
from pentad.algorithms.kl import clamped, kl_estimate
from pentad.algorithms.protocol import Loss, Mean, Outputs
from pentad.algorithms.reduction import count, spread_over_tokens, sum_over_sequences, token_weights
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.algorithms.grpo import GRPOSettings
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory


class GRPO:
    """The algorithm."""

    def __init__(self, settings: GRPOSettings) -> None:
        self._settings = settings

    def admit(self, group: Sequence[Trajectory]) -> bool:
        return True

    def credit(self, batch: Batch) -> Batch:
        """Adds `advantages`, float32 `[T]`."""
        settings, rewards = self._settings, batch.per_sequence["rewards"]
        if settings.kl_coef > 0 and settings.kl_in == "reward":
            columns = batch.per_token
            penalty = kl_estimate(columns["old_logprobs"], columns["ref_logprobs"], settings.kl_estimator)
            rewards = rewards - settings.kl_coef * sum_over_sequences(penalty, batch)
        advantages = group_advantages(
            rewards,
            batch.per_sequence["group_ids"],
            divide_by_std=settings.advantage_std,
            scored=batch.per_sequence.get("scored"),
        )
        return batch.with_per_token("advantages", spread_over_tokens(advantages, batch))

    def losses(self) -> Mapping[Role, Loss]:
        return {"policy": GRPOLoss(self._settings)}


class GRPOLoss:
    """The clipped surrogate, plus `kl_coef` times the KL estimate where that is a term of the loss."""

    differentiates_entropy = False

    def __init__(self, settings: GRPOSettings) -> None:
        self._settings = settings
        self._penalised = settings.kl_coef > 0 and settings.kl_in == "loss"
        self.reads = frozenset({"old_logprobs", "advantages"} | ({"ref_logprobs"} if settings.kl_coef > 0 else set()))

    def denominator(self, minibatch: Batch) -> float:
        return count(minibatch, self._settings.loss_mean)

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, Mapping[str, Mean]]:
        settings, columns, mask = self._settings, microbatch.per_token, microbatch.loss_mask
        logprobs, old, advantages = outputs.logprobs, columns["old_logprobs"], columns["advantages"]
        ratio = clamped(logprobs - old).exp()
        unclipped = ratio * advantages
        clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantages
        per_token = -torch.minimum(unclipped, clipped)
        values = {
            "train/clip_fraction": (clipped < unclipped).float(),
            "train/policy_kl": kl_estimate(logprobs.detach(), old, "k3"),
        }
        if settings.kl_coef > 0:
            kl = kl_estimate(logprobs, columns["ref_logprobs"], settings.kl_estimator)
            if self._penalised:
                per_token = per_token + settings.kl_coef * kl
            values["train/kl"] = kl
        loss = (per_token * token_weights(microbatch, settings.loss_mean)).sum()
        tokens = mask.sum()
        return loss, {name: Mean((value.detach() * mask).sum(), tokens) for name, value in values.items()}
