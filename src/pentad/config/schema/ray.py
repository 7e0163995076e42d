"""Settings of the Ray cluster that the run is placed on."""

from pydantic import Field

from pentad.config.schema.base import Settings


class RaySettings(Settings):
    """`ray.*`"""

    address: str | None = Field(None, description="a running cluster (host:port or auto); null starts one for this run")
