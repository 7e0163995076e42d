"""Which checkpoint a run goes on from.

Invariant: what `trainer.resume_mode` names is taken, or refused; a run never begins anew where the user asked to go on.
"""

from collections.abc import Callable
from pathlib import Path

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.record.checkpoints import DIRECTORY, Checkpoint, Checkpoints, find_checkpoint
from pentad.record.run_dir import RunDir


def choose_checkpoint(settings: RunSettings, warn: Callable[[str], None]) -> Checkpoint | None:
    """What `trainer.resume_mode` says; None to begin anew. Its files are compared with their checksums.

    Args:
        warn: is told of damaged checkpoints.

    Raises:
        UserError: a path without a checkpoint, checkpoints of which none is sound, or a run that has no step left.
    """
    mode, directory = settings.trainer.resume_mode, settings.experiment.run_dir
    if mode == "disable":
        return None
    if mode == "auto":
        if settings.experiment.overwrite:
            return None
        found = Checkpoints(directory / DIRECTORY).newest_sound(warn)
    else:
        path = Path(mode).expanduser()
        if not path.exists():
            raise UserError(
                f"trainer.resume_mode: there is no checkpoint or run {mode}",
                "check the path, or set trainer.resume_mode to auto or disable",
            )
        found = find_checkpoint(path, warn)
    if found is not None:
        _check_left(settings, found)
    return found


def is_own(checkpoint: Checkpoint | None, directory: Path) -> bool:
    """Whether a checkpoint is one of the run in a directory."""
    return checkpoint is not None and checkpoint.path.resolve().parent == (directory / DIRECTORY).resolve()


def _check_left(settings: RunSettings, checkpoint: Checkpoint) -> None:
    """A run whose last step is behind it has only its export to do, if that."""
    step, total, run_dir = checkpoint.manifest.step, settings.trainer.total_steps, RunDir(settings.experiment.run_dir)
    if step > total:
        raise UserError(
            f"checkpoint {checkpoint.path} is of step {step}, and trainer.total_steps is {total}",
            f"set trainer.total_steps above {step}, or trainer.resume_mode to an earlier checkpoint",
        )
    done = is_own(checkpoint, run_dir.path) and (run_dir.model.exists() or not settings.trainer.export)
    if step == total and done:
        raise UserError(
            f"{run_dir.path} already holds a run that has finished its {total} steps",
            "raise trainer.total_steps to go on, choose another experiment.name, or set experiment.overwrite=true to "
            "move the run aside and begin anew",
        )
