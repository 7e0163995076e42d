"""Settings of supervised fine-tuning."""

from typing import ClassVar, Literal

from pydantic import Field

from pentad.config.schema.algorithms.base import AlgorithmSettings


class SFTSettings(AlgorithmSettings):
    """`algorithm.*` with name sft"""

    trains_on: ClassVar[Literal["rollouts", "examples", "preferences"]] = "examples"

    name: Literal["sft"] = Field("sft", description="supervised tuning on given responses")
    loss_mean: Literal["token", "sequence"] = Field(
        "token", description="mean over all tokens, or over sequences of their means"
    )
