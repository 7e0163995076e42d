"""Settings of proximal policy optimisation with a critic."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import (
    KLEstimator,
    KLIn,
    NormalizeAdvantages,
    PolicyGradientSettings,
)


class PPOSettings(PolicyGradientSettings):
    """`algorithm.*` with name ppo"""

    name: Literal["ppo"] = Field("ppo", description="a critic predicts rewards; its errors are the advantages")
    kl_in: KLIn = "reward"
    kl_estimator: KLEstimator = "k1"
    normalize_advantages: NormalizeAdvantages = True
    gamma: float = Field(1.0, gt=0, le=1, description="discount of what comes a token later")
    gae_lambda: float = Field(
        1.0, ge=0, le=1, description="1: advantages follow from rewards alone; 0: from the critic's next value"
    )
    value_clip: float | None = Field(
        0.2,
        gt=0,
        description="the loss of a value that moved farther than this in the step is clipped; null: it is not",
    )

    @property
    def columns(self) -> frozenset[str]:
        return super().columns | {"values"}

    @property
    def compares_in_group(self) -> bool:
        return False

    @property
    def ignores_scale(self) -> bool:
        # The critic learns rewards as they are.
        return False
