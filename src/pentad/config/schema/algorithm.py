"""Settings of the learning algorithm."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.base import Settings


class AlgorithmSettings(Settings):
    """`algorithm.*`"""

    name: Literal["grpo", "sft"] = Field("grpo", description="grpo: reinforcement learning; sft: supervised tuning")
    clip_low: float = Field(0.2, ge=0, description="probability ratio is clipped below 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="probability ratio is clipped above 1 + clip_high")
    kl_coef: float = Field(0.0, ge=0, description="weight of the KL penalty to the initial model; 0 keeps no reference")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="http://joschu.net/blog/kl-approx.html")
    loss_mean: Literal["token", "sequence"] = Field(
        "token", description="mean over all tokens, or over sequences of their means"
    )
    advantage_std: bool = Field(
        True, description="divide group advantages by their standard deviation (GRPO) or not (Dr. GRPO)"
    )
    optimizer_steps: int = Field(1, ge=1, description="optimizer steps per rollout batch (minibatches)")
