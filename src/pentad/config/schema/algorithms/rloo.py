"""Settings of REINFORCE leave-one-out."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import KLEstimator, KLIn, LossMean, PolicyGradientSettings


class RLOOSettings(PolicyGradientSettings):
    """`algorithm.*` with name rloo"""

    name: Literal["rloo"] = Field("rloo", description="REINFORCE with the mean of the other samples as baseline")
    kl_in: KLIn = "reward"
    kl_estimator: KLEstimator = "k1"
    loss_mean: LossMean = "constant"
