"""Settings of REINFORCE++."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import (
    KLEstimator,
    KLIn,
    NormalizeAdvantages,
    PolicyGradientSettings,
)


class ReinforcePPSettings(PolicyGradientSettings):
    """`algorithm.*` with name reinforce_pp"""

    name: Literal["reinforce_pp"] = Field(
        "reinforce_pp", description="REINFORCE with advantages normalised over a step"
    )
    kl_in: KLIn = "reward"
    kl_estimator: KLEstimator = "k1"
    normalize_advantages: NormalizeAdvantages = True
    group_baseline: bool = Field(
        False, description="subtract the mean reward of the group first (REINFORCE++-baseline)"
    )

    @property
    def compares_in_group(self) -> bool:
        return self.group_baseline
