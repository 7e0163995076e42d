"""Settings of the Ray cluster that the run is placed on."""

from typing import Any

from pydantic import Field, field_validator

from pentad.config.schema.base import Settings


class RaySettings(Settings):
    """`ray.*`"""

    address: str | None = Field(None, description="a running cluster (host:port or auto); null starts one for this run")
    env: dict[str, str | None] = Field(
        default_factory=dict,
        description="environment variables of trainer and engines; null passes on the value that the variable has "
        "where the run is started, as for secrets; NCCL_* and HF_* are passed on in any case",
    )

    @field_validator("env", mode="before")
    @classmethod
    def _numbers_are_text(cls, value: Any) -> Any:
        """YAML has `1` for what the environment has as `"1"`."""
        if not isinstance(value, dict):
            return value
        return {name: str(item) if type(item) in (int, float) else item for name, item in value.items()}
