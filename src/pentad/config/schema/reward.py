"""Settings of the reward and of the processes that compute it."""

from typing import Any, Literal

from pydantic import Field

from pentad.config.schema.base import Settings

OnFailure = Literal["drop", "zero"]


class RewardSettings(Settings):
    """`reward.*`"""

    name: str = Field(
        "auto", description="gsm8k, math, reasoning_gym, exact, module:function, or auto (by data_source)"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="extra keyword arguments of a module:function reward"
    )
    timeout_s: float = Field(
        10.0, gt=0, description="longest time of one call, in seconds; a longer one is ended and has failed"
    )
    on_failure: OnFailure = Field(
        "drop",
        description="a sample whose call failed (timeout, crash, exception, no finite number) is left out of training "
        "(drop), or trained on as reward 0 (zero); either way it is counted, and 0 in evaluations",
    )
    workers: int = Field(2, ge=1, description="processes that compute rewards")
