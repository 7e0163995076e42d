"""The trainer's models as what `pentad.loops.saving` saves."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pentad.cluster.trainers import Trainers
from pentad.record.manifest import FileRecord, record_file
from pentad.weights.checkpoint_model import write_model_files
from pentad.weights.critic import write_critic_config


class SavableTrainers:
    """Satisfies `pentad.loops.saving.Savable`.

    Args:
        source: the directory of the model; what it has beside weights goes into each checkpoint, which then is a model.
        critic: the directory that the critic began with, if there is one; its configuration goes beside its weights.
    """

    def __init__(self, trainers: Trainers, source: Path, critic: Path | None = None) -> None:
        self._trainers, self._source, self._critic = trainers, source, critic
        self._target: Path | None = None

    async def start_save(self, directory: Path) -> Mapping[str, Any]:
        """Copy the state of all models; returns their counts by role."""
        self._target = directory
        started = await self._trainers.start_save(directory.absolute())
        return {role: dict(counters) for role, counters in started.counters.items()}

    async def finish_save(self) -> list[FileRecord]:
        """Wait for the files."""
        written = await self._trainers.finish_save()
        assert self._target is not None, "nothing is being saved"
        rest = await asyncio.to_thread(_write_rest, self._source, self._critic, self._target)
        return [*(FileRecord(name, record.bytes, record.sha256) for name, record in written.items()), *rest]


def _write_rest(source: Path, critic: Path | None, target: Path) -> list[FileRecord]:
    names = write_model_files(source, target)
    if critic is not None:
        names.append(write_critic_config(critic, target))
    return [record_file(target, name) for name in names]
