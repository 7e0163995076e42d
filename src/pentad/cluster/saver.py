"""Saving and restoring all trained models of one rank.

Invariant: training waits only while state is copied to host memory; one thread writes the copy, and the next copy is
made when that has ended. An error of writing is an answer like any other, so all ranks have stopped when it is told.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pentad.cluster.process import check_visible
from pentad.config.schema.algorithms.base import Role
from pentad.errors import UserError
from pentad.weights.block_files import BlockReader, FileRecord, WriteError, rank_file

# Megatron takes seconds to import, and the driver has no use for it.
if TYPE_CHECKING:
    from pentad.trainers.megatron.state import Counters, RankState, Staged


@dataclass(frozen=True)
class Started:
    """A save that has begun, on one rank or all.

    Attributes:
        seconds: for which training waited.
        bytes: that are being written.
        counters: by role, where training stood.
    """

    seconds: float
    bytes: int
    counters: "Mapping[Role, Counters]"


class Saver:
    """The state of one rank's trained models.

    Args:
        rank: of this process.
        states: by role.
    """

    def __init__(self, rank: int, states: "Mapping[Role, RankState]") -> None:
        self._rank = rank
        self._states = states
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._writing: Future[Mapping[str, FileRecord]] | None = None

    def reserve(self) -> None:
        """Begin to allocate the memory for copies; returns at once."""
        for state in self._states.values():
            state.reserve()

    def start(self, directory: Path) -> Started:
        """Copy the state, and have it written to `directory/<role>/rank-<rank>.safetensors` on a thread.

        Raises:
            UserError: this machine does not see the directory, or has not enough memory.
        """
        check_visible("experiment.dir", directory)
        began = time.perf_counter()
        if self._writing is not None:
            wait([self._writing])  # its copy is still needed; how it went is told by `finish`
        staged = {role: state.stage() for role, state in self._states.items()}
        counters = {role: state.counters() for role, state in self._states.items()}
        self._writing = self._thread.submit(self._write, directory, staged)
        seconds = time.perf_counter() - began
        return Started(seconds, sum(one.bytes for one in staged.values()), counters)

    def finish(self) -> Mapping[str, FileRecord] | WriteError:
        """Wait for the writer of the last `start`.

        Returns:
            what was written, by `<role>/<file>`; or why it was not.
        """
        if self._writing is None:
            raise RuntimeError("nothing is being saved")
        error = self._writing.exception()
        return error if isinstance(error, WriteError) else self._writing.result()

    def restore(self, directory: Path, counters: "Mapping[Role, Counters]") -> None:
        """Take the state of every trained model from `directory/<role>`.

        Args:
            counters: by role, of all ranks; see `merge`.

        Raises:
            UserError: this machine does not see the directory, or the files do not hold what the models need.
        """
        for role, state in self._states.items():
            if role not in counters:
                raise UserError(
                    f"{directory} has no {role} model", "go on with the algorithm that the checkpoint is of"
                )
            check_visible("experiment.dir", directory / role)
            state.load(BlockReader(directory / role), counters[role])

    def _write(self, directory: Path, staged: "Mapping[Role, Staged]") -> Mapping[str, FileRecord]:
        records, path = {}, directory
        try:
            for role, one in staged.items():
                path = directory / role / rank_file(self._rank)
                path.parent.mkdir(exist_ok=True)
                record = one.write(path.parent, self._rank)
                records[f"{role}/{record.name}"] = record
        except OSError as error:
            raise WriteError.of(error, path) from None
        return records


def merge(started: list[Started]) -> Started:
    """The same of all ranks: training waited for the slowest.

    Raises:
        RuntimeError: ranks stand at different steps.
    """
    counters: dict[Role, dict[str, int]] = {}
    for one in started:
        for role, mine in one.counters.items():
            known = counters.setdefault(role, {})
            for name, value in mine.items():
                if known.setdefault(name, value) != value:
                    raise RuntimeError(f"ranks of the {role} model stand at {name} {known[name]} and {value}")
    return Started(max(one.seconds for one in started), sum(one.bytes for one in started), counters)
