"""Settings of the reward and of the processes that compute it."""

from typing import Any

from pydantic import Field

from pentad.config.schema.base import Settings


class RewardSettings(Settings):
    """`reward.*`"""

    name: str = Field(
        "auto", description="gsm8k, math, reasoning_gym, exact, module:function, or auto (by data_source)"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="extra keyword arguments of a module:function reward"
    )
    timeout_s: float = Field(
        10.0, gt=0, description="longest time of one call, in seconds; a longer one scores 0 and is counted"
    )
    workers: int = Field(2, ge=1, description="processes that compute rewards")
