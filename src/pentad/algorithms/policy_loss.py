"""The loss of the policy, for every algorithm with a policy gradient.

Invariant: surrogate, penalty and entropy are sums over the tokens of whole sequences; correction weights multiply the
surrogate alone.
"""

from collections.abc import Mapping

from torch import Tensor

from pentad.algorithms.kl import kl_estimate
from pentad.algorithms.protocol import Mean, Outputs
from pentad.algorithms.reduction import corrected, count, token_weights
from pentad.algorithms.surrogates import SurrogateFunction, clipped_ratio
from pentad.config.schema.algorithms.policy_gradient import PolicyGradientSettings
from pentad.samples.batch import Batch


class PolicyLoss:
    """Surrogate, plus the coefficient times the KL estimate where that is a term of the loss, minus weighed entropy.

    Args:
        surrogate: its policy-gradient term.
        max_response_tokens: `rollout.max_response_tokens`; needed for the mean `constant`.
    """

    def __init__(
        self,
        settings: PolicyGradientSettings,
        surrogate: SurrogateFunction = clipped_ratio,
        max_response_tokens: int | None = None,
    ) -> None:
        self._settings, self._surrogate, self._max_response_tokens = settings, surrogate, max_response_tokens
        self.differentiates_entropy = settings.entropy_coef > 0
        penalty = {"ref_logprobs"} if settings.kl_coef > 0 else set()
        adapted = {"kl_coef"} if settings.kl_coef > 0 and settings.kl_target is not None else set()
        self.reads = frozenset({"old_logprobs", "advantages"} | penalty | adapted)

    def denominator(self, minibatch: Batch) -> float:
        return count(minibatch, self._settings.loss_mean, self._max_response_tokens)

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, Mapping[str, Mean]]:
        settings, columns, mask = self._settings, microbatch.per_token, microbatch.loss_mask
        logprobs = outputs.logprobs
        surrogate = self._surrogate(logprobs, microbatch, settings)
        per_token = corrected(surrogate.loss, microbatch)
        values = {
            "train/clip_fraction": surrogate.clipped,
            "train/policy_kl": kl_estimate(logprobs.detach(), columns["old_logprobs"], "k3"),
        }
        if settings.kl_coef > 0:
            kl = kl_estimate(logprobs, columns["ref_logprobs"], settings.kl_estimator)
            coefficient: Tensor | float = settings.kl_coef
            if settings.kl_target is not None:
                coefficient = microbatch.per_sequence["kl_coef"][microbatch.sequence_ids()]
                values["train/kl_coef"] = coefficient
            if settings.penalizes_loss:
                per_token = per_token + coefficient * kl
            values["train/kl"] = kl
        if settings.entropy_coef > 0:
            per_token = per_token - settings.entropy_coef * outputs.entropies
        loss = (per_token * token_weights(microbatch, settings.loss_mean)).sum()
        tokens = mask.sum()
        return loss, {name: Mean((value.detach() * mask).sum(), tokens) for name, value in values.items()}
