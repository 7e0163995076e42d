"""Metrics in Weights & Biases, an optional package.

Invariant: wandb is imported only when `trainer.logger` names it.
"""

from collections.abc import Mapping

from pentad.errors import UserError
from pentad.extras import require
from pentad.record.run_dir import RunDir

_FIX_LOGIN = "run `wandb login`, or `wandb offline`, or remove wandb from trainer.logger"


class Wandb:
    """Sends metrics to a wandb run of the experiment's name in the project `pentad`."""

    def __init__(self, run_dir: RunDir, *, name: str, settings: Mapping[str, object]) -> None:
        """Start the wandb run.

        Raises:
            UserError: wandb is not installed, or refuses to start.
        """
        require("wandb", "wandb", "trainer.logger", "remove wandb from trainer.logger")
        import wandb

        # A run that goes on is the same run there, too.
        known = run_dir.wandb_id
        kept = known.read_text().strip() if known.exists() else wandb.util.generate_id()
        partial = known.with_name(f".{known.name}.partial")
        partial.write_text(kept + "\n")
        partial.replace(known)
        try:
            self._run = wandb.init(
                project="pentad", name=name, dir=str(run_dir.path), config=dict(settings), id=kept, resume="allow"
            )
        except wandb.errors.Error as error:
            raise UserError(f"wandb does not start: {error}", _FIX_LOGIN) from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step, or a part of them."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()
