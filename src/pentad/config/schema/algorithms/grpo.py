"""Settings of group-relative policy optimisation."""

from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.base import RolloutAlgorithmSettings
from pentad.errors import UserError


class GRPOSettings(RolloutAlgorithmSettings):
    """`algorithm.*` with name grpo"""

    name: Literal["grpo"] = Field("grpo", description="reinforcement learning from groups of samples")
    clip_low: float = Field(0.2, ge=0, description="probability ratio is clipped below 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="probability ratio is clipped above 1 + clip_high")
    kl_coef: float = Field(0.0, ge=0, description="weight of the KL penalty to the initial model; 0 keeps no reference")
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="loss: a differentiable term; reward: taken from the reward before advantages"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3",
        description="http://joschu.net/blog/kl-approx.html; as a loss, k2 has the gradient of KL(policy || initial), "
        "k3 that of KL(initial || policy), and k1 none",
    )
    loss_mean: Literal["token", "sequence"] = Field(
        "token", description="mean over all tokens, or over sequences of their means"
    )
    advantage_std: bool = Field(True, description="divide group advantages by their standard deviation")

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"old_logprobs"} | ({"ref_logprobs"} if self.kl_coef > 0 else set()))

    def unread(self) -> Iterator[tuple[tuple[str, ...], str, str]]:
        if self.kl_coef == 0:
            why, use = "there is no KL penalty, as algorithm.kl_coef is 0", "or give algorithm.kl_coef a value above 0"
            yield ("kl_in", "kl_estimator"), why, use

    def impossible(self, samples: int, named: Callable[[str], str]) -> Iterator[UserError]:
        if samples == 1:
            yield UserError(
                f"{named('rollout.n')} is 1: a group of one sample has no advantage (algorithm grpo), so nothing is "
                "learnt",
                "set rollout.n to 2 or more",
            )
        if self.kl_coef > 0 and self.kl_in == "loss" and self.kl_estimator == "k1":
            yield UserError(
                f"{named('algorithm.kl_estimator')} is k1, whose gradient as a loss term is zero on average: it would "
                "add noise and no penalty",
                "set algorithm.kl_estimator to k2 or k3, or algorithm.kl_in to reward",
            )
