"""What the settings of algorithms that learn from rewarded samples share: rewards, penalty, clipping, means.

Invariant: a value that would change nothing is told by `unread`, and one that cannot work by `impossible`. An algorithm
states its own defaults, and adds fields that it alone has.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from pentad.config.schema.algorithms.base import RolloutAlgorithmSettings
from pentad.config.schema.rollout import RolloutSettings
from pentad.errors import UserError

ClipLow = Annotated[float, Field(ge=0, description="probability ratio is clipped below 1 - clip_low")]
ClipHigh = Annotated[float, Field(ge=0, description="probability ratio is clipped above 1 + clip_high")]
KLIn = Annotated[
    Literal["loss", "reward"],
    Field(description="loss: a differentiable term; reward: taken from the reward before advantages"),
]
KLEstimator = Annotated[
    Literal["k1", "k2", "k3"],
    Field(
        description="http://joschu.net/blog/kl-approx.html; as a loss, k2 has the gradient of KL(policy || initial), "
        "k3 that of KL(initial || policy), and k1 none",
    ),
]
LossMean = Annotated[
    Literal["token", "sequence", "constant"],
    Field(
        description="mean over all tokens, or over sequences of their means; constant: sum over tokens, divided by "
        "sequences x rollout.max_response_tokens",
    ),
]
AdvantageStd = Annotated[bool, Field(description="divide group advantages by their standard deviation")]
NormalizeAdvantages = Annotated[
    bool, Field(description="centre the advantages of all tokens of a step and divide them by their standard deviation")
]
DynamicSampling = Annotated[
    bool, Field(description="leave out groups whose rewards are all equal, and sample other prompts in their place")
]
OverlongFilter = Annotated[
    bool, Field(description="samples that the token limit ended are not trained on; their rewards count in their group")
]
OverlongBuffer = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="last part of rollout.max_response_tokens over which the reward falls by overlong_penalty; 0: none",
    ),
]


class PolicyGradientSettings(RolloutAlgorithmSettings):
    """Fields of every algorithm with a policy gradient."""

    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.2
    kl_coef: float = Field(0.0, ge=0, description="weight of the KL penalty to the initial model; 0 keeps no reference")
    kl_in: KLIn = "loss"
    kl_estimator: KLEstimator = "k3"
    kl_target: float | None = Field(
        None,
        gt=0,
        description="KL per token, in nats, to which kl_coef is adapted after each rollout batch; null: it is fixed",
    )
    kl_gain: float = Field(
        0.1, gt=0, lt=5, description="kl_coef is multiplied by 1 + kl_gain x (KL / kl_target - 1, within +-0.2)"
    )
    loss_mean: LossMean = "token"
    entropy_coef: float = Field(0.0, ge=0, description="weight of the policy's entropy, which is raised")
    normalize_advantages: NormalizeAdvantages = False
    normalize_rewards: bool = Field(
        False, description="centre the rewards of a step and divide them by their standard deviation"
    )
    reward_clip: float | None = Field(
        None, gt=0, description="rewards are clipped to +-reward_clip; null: they are not"
    )
    dynamic_sampling: DynamicSampling = False
    overlong_filter: OverlongFilter = False
    overlong_buffer: OverlongBuffer = 0.0
    overlong_penalty: float = Field(1.0, gt=0, description="taken from the reward of a response of the longest length")

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"old_logprobs"} | ({"ref_logprobs"} if self.kl_coef > 0 else set()))

    @property
    def compares_in_group(self) -> bool:
        """Whether an advantage is a comparison with other samples of the prompt."""
        return True

    @property
    def penalizes_reward(self) -> bool:
        """Whether the KL penalty is taken from the reward."""
        return self.kl_coef > 0 and self.kl_in == "reward"

    @property
    def penalizes_loss(self) -> bool:
        """Whether the KL penalty is a term of the loss."""
        return self.kl_coef > 0 and self.kl_in == "loss"

    @property
    def ignores_scale(self) -> bool:
        """Whether rewards times a constant plus another give the same advantages."""
        return self.normalize_advantages

    def unread(self) -> Iterator[tuple[tuple[str, ...], str, str]]:
        if self.kl_coef == 0:
            why, use = "there is no KL penalty, as algorithm.kl_coef is 0", "or give algorithm.kl_coef a value above 0"
            yield ("kl_in", "kl_estimator", "kl_target", "kl_gain"), why, use
        elif self.kl_target is None:
            yield ("kl_gain",), "algorithm.kl_target is null, so kl_coef is fixed", "or set algorithm.kl_target"
        if self.overlong_buffer == 0:
            why, use = "algorithm.overlong_buffer is 0, so length costs nothing", "or set algorithm.overlong_buffer"
            yield ("overlong_penalty",), why, use
        if self.ignores_scale and self.reward_clip is None and not self.penalizes_reward:
            why, use = "advantages are divided by their deviation, which undoes it", "or set algorithm.reward_clip"
            yield ("normalize_rewards",), why, use

    def impossible(self, rollout: RolloutSettings, named: Callable[[str], str]) -> Iterator[UserError]:
        if rollout.n == 1 and self.compares_in_group:
            yield UserError(
                f"{named('rollout.n')} is 1: a group of one sample has no advantage (algorithm {self.name}), so "
                "nothing is learnt",
                "set rollout.n to 2 or more",
            )
        elif rollout.n == 1 and self.dynamic_sampling:
            yield UserError(
                f"{named('algorithm.dynamic_sampling')} leaves out groups of equal rewards, and {named('rollout.n')} "
                "is 1: every group would be left out",
                "set rollout.n to 2 or more, or algorithm.dynamic_sampling to false",
            )
        if self.penalizes_loss and self.kl_estimator == "k1":
            yield UserError(
                f"{named('algorithm.kl_estimator')} is k1, whose gradient as a loss term is zero on average: it would "
                "add noise and no penalty",
                "set algorithm.kl_estimator to k2 or k3, or algorithm.kl_in to reward",
            )
