"""Settings of Dr. GRPO."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import LossMean, PolicyGradientSettings


class DrGRPOSettings(PolicyGradientSettings):
    """`algorithm.*` with name dr_grpo"""

    name: Literal["dr_grpo"] = Field("dr_grpo", description="grpo without its divisions by deviation and length")
    loss_mean: LossMean = "constant"
