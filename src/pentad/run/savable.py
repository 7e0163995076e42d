"""The trainer's models as what `pentad.loops.saving` saves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pentad.cluster.trainers import Trainers
from pentad.record.manifest import FileRecord


class SavableTrainers:
    """Satisfies `pentad.loops.saving.Savable`."""

    def __init__(self, trainers: Trainers) -> None:
        self._trainers = trainers

    async def start_save(self, directory: Path) -> Mapping[str, Any]:
        """Copy the state of all models; returns their counts by role."""
        started = await self._trainers.start_save(directory.absolute())
        return {role: dict(counters) for role, counters in started.counters.items()}

    async def finish_save(self) -> list[FileRecord]:
        """Wait for the files."""
        written = await self._trainers.finish_save()
        return [FileRecord(name, record.bytes, record.sha256) for name, record in written.items()]
