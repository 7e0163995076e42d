"""Settings of DAPO."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import (
    ClipHigh,
    DynamicSampling,
    OverlongBuffer,
    PolicyGradientSettings,
)


class DAPOSettings(PolicyGradientSettings):
    """`algorithm.*` with name dapo"""

    name: Literal["dapo"] = Field("dapo", description="grpo with dynamic sampling, a higher clip and a cost of length")
    clip_high: ClipHigh = 0.28
    dynamic_sampling: DynamicSampling = True
    overlong_buffer: OverlongBuffer = 0.2

    @property
    def ignores_scale(self) -> bool:
        return True
