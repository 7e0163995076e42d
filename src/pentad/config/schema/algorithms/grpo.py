"""Settings of group-relative policy optimisation."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.algorithms.policy_gradient import AdvantageStd, PolicyGradientSettings


class GRPOSettings(PolicyGradientSettings):
    """`algorithm.*` with name grpo"""

    name: Literal["grpo"] = Field("grpo", description="reinforcement learning from groups of samples")
    advantage_std: AdvantageStd = True

    @property
    def ignores_scale(self) -> bool:
        return self.advantage_std or self.normalize_advantages
