"""Settings of direct preference optimisation."""

from typing import ClassVar, Literal

from pydantic import Field

from pentad.config.schema.algorithms.base import AlgorithmSettings


class DPOSettings(AlgorithmSettings):
    """`algorithm.*` with name dpo"""

    trains_on: ClassVar[Literal["rollouts", "examples", "preferences"]] = "preferences"

    name: Literal["dpo"] = Field("dpo", description="tuning on pairs of a chosen and a rejected response")
    dpo_beta: float = Field(0.1, gt=0, description="how much the policy is held to the initial model")

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"ref_logprobs"})
