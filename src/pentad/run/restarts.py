"""Starting a failed run again.

Invariant: each failure is kept in failures.jsonl of the run directory, with its cause, before the run starts again or
ends.
"""

import json
import time

from pentad.record.checkpoints import Checkpoint, Checkpoints
from pentad.record.outcome import RunFailedError, Status
from pentad.record.run_dir import RunDir


class Restarts:
    """How often a run may start again.

    Args:
        allowed: `trainer.max_restarts`.
        run_dir: of the run.

    Attributes:
        left: restarts that are left.
    """

    def __init__(self, allowed: int, run_dir: RunDir) -> None:
        self.left = allowed
        self._run_dir = run_dir
        # Of failures before the run began in its directory.
        self._unwritten: list[dict[str, str]] = []

    def take(self, error: RunFailedError, status: Status) -> bool:
        """Keep the cause, and use one restart; False where none is left.

        Args:
            error: what the run failed of.
            status: where it was.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._unwritten.append({"time": now, "while": str(status), "cause": str(error), **error.facts})
        if self._run_dir.begun:
            with self._run_dir.writing(), self._run_dir.failures.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in self._unwritten)
            self._unwritten = []
        if not self.left:
            return False
        self.left -= 1
        return True

    def checkpoint(self, first: Checkpoint | None) -> Checkpoint | None:
        """The checkpoint to start from: the newest of the run, else the one that it was begun from.

        Args:
            first: that the run was begun from.
        """
        if not self._run_dir.begun:  # the directory still holds what an earlier run has left
            return first
        return Checkpoints(self._run_dir.checkpoints).newest_sound(print) or first
