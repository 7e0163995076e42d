"""Settings of group sequence policy optimisation."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import (
    AdvantageStd,
    ClipHigh,
    ClipLow,
    LossMean,
    PolicyGradientSettings,
)


class GSPOSettings(PolicyGradientSettings):
    """`algorithm.*` with name gspo"""

    name: Literal["gspo"] = Field(
        "gspo", description="grpo with one ratio a sequence: the geometric mean of its tokens'"
    )
    clip_low: ClipLow = 3e-4
    clip_high: ClipHigh = 4e-4
    loss_mean: LossMean = "sequence"
    advantage_std: AdvantageStd = True

    @property
    def ignores_scale(self) -> bool:
        return self.advantage_std or self.normalize_advantages
