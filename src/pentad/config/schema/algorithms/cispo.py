"""Settings of CISPO."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import AdvantageStd, ClipHigh, ClipLow, PolicyGradientSettings


class CISPOSettings(PolicyGradientSettings):
    """`algorithm.*` with name cispo"""

    name: Literal["cispo"] = Field("cispo", description="REINFORCE with a clipped ratio as a constant weight")
    clip_low: ClipLow = 1.0
    clip_high: ClipHigh = 4.0
    advantage_std: AdvantageStd = True

    @property
    def ignores_scale(self) -> bool:
        return self.advantage_std or self.normalize_advantages
