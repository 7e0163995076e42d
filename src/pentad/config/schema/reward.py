"""Settings of the reward and of the processes that compute it."""

from typing import Any, Literal

from pydantic import Field

from pentad.config.schema.base import Settings

OnFailure = Literal["drop", "zero"]

# Built-in rewards that take `reward.options`.
WITH_OPTIONS = ("format", "length", "http")


class RewardSettings(Settings):
    """`reward.*`"""

    name: str = Field(
        "auto",
        description="gsm8k, math, reasoning_gym, exact, format, length, http, module:function, or auto (by "
        "data_source)",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of a module:function, of format, length or http"
    )
    functions: dict[str, Any] = Field(
        default_factory=dict,
        description="several rewards instead of reward.name: key -> the name of one, or {name, weight, options, "
        "data_sources}; each is logged as reward/KEY, and their weighted sum is the reward",
    )
    timeout_s: float = Field(
        10.0, gt=0, description="longest time of one call, in seconds; a longer one is ended and has failed"
    )
    on_failure: OnFailure = Field(
        "drop",
        description="a sample whose call failed (timeout, crash, exception, no finite number) is left out of training "
        "(drop), or trained on as reward 0 (zero); either way it is counted, and 0 in evaluations",
    )
    max_failures: int | None = Field(
        None, ge=0, description="end the run when more calls than this have failed; null: as long as some succeed"
    )
    workers: int | None = Field(
        None, ge=1, description="processes that compute rewards; null: as many as cores, at most 32"
    )
