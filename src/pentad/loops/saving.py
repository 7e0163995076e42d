"""Checkpoints while the loop goes on.

Invariant: what a checkpoint holds is of one moment between two steps; training waits only until it is copied. A
checkpoint that cannot be written is told, leaves the earlier ones as they are, and does not end the run.
"""

import asyncio
import io
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from pentad.config.schema.trainer import TrainerSettings
from pentad.errors import UserError
from pentad.loops.journal import Journal
from pentad.record.checkpoints import Checkpoints
from pentad.record.manifest import FileRecord, Manifest, record_file, sync
from pentad.record.metric_table import find_metric

DRIVER_STATE = "driver.pt"


class Savable(Protocol):
    """Models that write what they hold."""

    async def start_save(self, directory: Path) -> Mapping[str, Any]:
        """Copy the state and have it written into a directory; returns, when it is copied, counts that are part of it.

        Raises:
            UserError: a machine does not see the directory.
        """
        ...

    async def finish_save(self) -> Sequence[FileRecord]:
        """Wait until all is on the disk; returns the files, by names relative to the directory.

        Raises:
            UserError: a file could not be written.
        """
        ...


@dataclass
class _Staged:
    step: int
    partial: Path
    counters: dict[str, Any]
    manifest: Manifest


class Saver:
    """Writes the checkpoints of a run.

    Args:
        trainers: models that are trained.
        checkpoints: where they go.
        manifest: with what is the same in all checkpoints of the run.
        saved: the step that the run goes on from; None if it begins.
        records: files that must be on the disk as far as the checkpoint that is made.

    Attributes:
        saved: the step of the newest checkpoint.
        failures: checkpoints that could not be written.
    """

    def __init__(
        self,
        trainers: Savable,
        checkpoints: Checkpoints,
        manifest: Manifest,
        settings: TrainerSettings,
        journal: Journal,
        saved: int | None = None,
        records: Sequence[Path] = (),
    ) -> None:
        self._trainers, self._checkpoints, self._manifest = trainers, checkpoints, manifest
        self._settings, self._journal = settings, journal
        self._staged: _Staged | None = None
        self._writing: asyncio.Task[None] | None = None
        self.saved = saved
        self._records = tuple(records)
        self.failures = 0
        # Of the newest checkpoint: its size, and how long it was written beside training.
        self._bytes: int | None = None
        self._write_s = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """`save/*`."""
        done = {} if self._bytes is None else {"save/gib": self._bytes / (1 << 30), "save/write_s": self._write_s}
        return {"save/failures": self.failures, **done}

    def due(self, step: int) -> bool:
        """Whether a checkpoint of this step is asked for."""
        every = self._settings.save_freq
        return bool(every) and (step % every == 0 or step == self._settings.total_steps)

    async def stage(self, step: int, version: int) -> None:
        """Copy the models; `commit` makes them a checkpoint. Training may go on when this returns."""
        with self._journal.timed("save"):
            self._journal.progress("save")
            await self.wait()
            partial = None
            try:
                partial = self._checkpoints.open(step)
                counters = dict(await self._trainers.start_save(partial))
            except (UserError, OSError) as error:
                await self._failed(step, partial, error)
                return
        self._staged = _Staged(step, partial, counters, replace(self._manifest, step=step, version=version))

    def commit(self, state: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Have what is staged become a checkpoint, while the loop goes on.

        Args:
            state: of the driver, after the same step.
            metrics: of that step.
        """
        if self._staged is None:
            return
        staged, self._staged = self._staged, None
        numbers = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        staged.manifest = replace(staged.manifest, metrics=numbers)
        self._writing = asyncio.ensure_future(self._write(staged, {"loop": dict(state), "trainers": staged.counters}))

    async def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            RunFailedError: a process failed meanwhile.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    async def settle(self, patience_s: float) -> None:
        """Give what is being written some time to become a checkpoint, whatever comes of it."""
        if self._writing is not None:
            with suppress(Exception):
                await asyncio.wait_for(asyncio.shield(self._writing), patience_s)

    async def close(self) -> None:
        """Leave what is being written as it is: not a checkpoint."""
        if self._writing is not None:
            self._writing.cancel()
            with suppress(BaseException):
                await self._writing
            self._writing = None

    async def _write(self, staged: _Staged, state: Mapping[str, Any]) -> None:
        began = time.monotonic()
        try:
            files = await self._trainers.finish_save()
            await asyncio.to_thread(self._complete, staged, files, state)
            self._bytes, self._write_s = sum(file.bytes for file in files), time.monotonic() - began
        except (UserError, OSError) as error:
            await self._failed(staged.step, staged.partial, error)

    def _complete(self, staged: _Staged, files: Sequence[FileRecord], state: Mapping[str, Any]) -> None:
        content = io.BytesIO()  # written to a full disk by torch, it would be a RuntimeError
        torch.save(state, content)
        (staged.partial / DRIVER_STATE).write_bytes(content.getbuffer())
        driver = record_file(staged.partial, DRIVER_STATE)
        for path in self._records:
            sync(path)
        self._checkpoints.complete(staged.partial, replace(staged.manifest, files=(*files, driver)))
        self.saved = staged.step
        try:
            self._checkpoints.prune(self._settings.max_ckpt_to_keep, self._best)
        except OSError as error:
            self._journal.message(f"an older checkpoint could not be removed: {error.strerror or error}")

    def _best(self, metrics: Mapping[str, float | None]) -> float | None:
        """What is highest for the best checkpoint."""
        if (name := self._settings.keep_best) is None or (value := metrics.get(name)) is None:
            return None
        return -value if (metric := find_metric(name)) is not None and metric.lower else value

    async def _failed(self, step: int, partial: Path | None, error: Exception) -> None:
        self.failures += 1
        reason = error.cause if isinstance(error, UserError) else getattr(error, "strerror", None) or str(error)
        kept = "there is none" if self.saved is None else f"the last one is that of step {self.saved}"
        self._journal.message(f"the checkpoint of step {step} could not be written: {reason}; {kept}; the run goes on")
        if partial is not None:
            await asyncio.to_thread(self._checkpoints.discard, partial)
