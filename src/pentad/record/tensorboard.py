"""Metrics in TensorBoard's event files.

Invariant: what TensorBoard shows is what metrics.jsonl holds; values that are not finite keep their kind here.
"""

import logging
from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from pentad.record.run_dir import RunDir

_log = logging.getLogger(__name__)


class TensorBoard:
    """Writes scalars to `<run>/tensorboard`. The directory appears with the first write."""

    def __init__(self, run_dir: RunDir, first_step: int | None = None) -> None:
        """Of a run that goes on, TensorBoard is told that events of `first_step` and later no longer count."""
        self._run_dir, self._first_step = run_dir, first_step
        self._writer: SummaryWriter | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar a metric and flush. What a full disk does not take is lost here; metrics.jsonl keeps it."""
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._run_dir.tensorboard), purge_step=self._first_step)
            for name, value in metrics.items():
                self._writer.add_scalar(name, float(value), step)
            self._writer.flush()
        except OSError as error:
            _log.warning("TensorBoard has no events of step %d: %s", step, error.strerror or error)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with self._run_dir.writing():
                writer.close()
