"""Settings of the run as a whole: its name, its directory, its seed."""

from pathlib import Path

from pydantic import Field

from pentad.config.schema.base import Settings


class ExperimentSettings(Settings):
    """`experiment.*`"""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run and its directory")
    dir: Path | None = Field(None, strict=False, description="run directory; default runs/<name>")
    seed: int = Field(1, ge=0, description="seeds data order, sampling and any random initialisation")
    overwrite: bool = Field(
        False,
        description="allow a run directory that already holds a run: that run is moved to <dir>.old-TIME, of which the "
        "last three are kept",
    )

    @property
    def run_dir(self) -> Path:
        """The directory that receives everything this run writes."""
        return self.dir if self.dir is not None else Path("runs") / self.name
