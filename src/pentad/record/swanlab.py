"""Metrics in SwanLab, an optional package.

Invariant: swanlab is imported only when `trainer.logger` names it.
"""

import uuid
from collections.abc import Mapping

from pentad.errors import UserError
from pentad.extras import require
from pentad.record.run_dir import RunDir

_FIX = "run `swanlab login`, or set SWANLAB_MODE=offline, or remove swanlab from trainer.logger"


class SwanLab:
    """Sends metrics to a SwanLab run of the experiment's name in the project `pentad`; its files are in the run's."""

    def __init__(self, run_dir: RunDir, *, name: str, settings: Mapping[str, object]) -> None:
        """Start the SwanLab run; a run that goes on is the same run there, too.

        Raises:
            UserError: swanlab is not installed, or refuses to start.
        """
        require("swanlab", "swanlab", "trainer.logger", "remove swanlab from trainer.logger")
        import swanlab

        known = run_dir.swanlab_id
        kept = known.read_text().strip() if known.exists() else uuid.uuid4().hex[:21]
        partial = known.with_name(f".{known.name}.partial")
        partial.write_text(kept + "\n")
        partial.replace(known)
        try:
            self._run = swanlab.init(
                project="pentad",
                name=name,
                log_dir=str(run_dir.path / "swanlog"),
                config=dict(settings),
                id=kept,
                resume="allow",
            )
        except Exception as error:  # it has no common class of errors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"swanlab does not start: {reason}", _FIX) from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step, or a part of them."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()
