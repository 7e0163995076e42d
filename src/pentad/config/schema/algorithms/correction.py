"""Settings of importance weights: what samples count that other weights, or another precision, have sampled."""

from typing import Literal

from pydantic import Field

from pentad.config.schema.base import Settings


class CorrectionSettings(Settings):
    """`algorithm.correction.*`

    The weight is that of the trainer's policy at the beginning of the batch over the policy that sampled:
    `exp(old_logprobs - rollout_logprobs)`, of a token or, multiplied, of its sequence.
    """

    level: Literal["auto", "none", "token", "sequence"] = Field(
        "auto",
        description="what an importance weight is of; auto: token where trainer.max_staleness is above 0, else none",
    )
    rule: Literal["truncate", "mask"] = Field(
        "truncate",
        description="truncate: a weight above `high` counts as `high`; mask: what has a weight outside low to high is "
        "left out",
    )
    high: float = Field(2.0, ge=1, description="largest weight")
    low: float = Field(0.0, ge=0, le=1, description="smallest weight, with rule mask")
