"""Which checkpoint a run goes on from.

Invariant: what `trainer.resume_mode` names is taken, or refused; a run never begins anew where the user asked to go on.
The same command, started again after it was killed, goes on with what it had done.
"""

from collections.abc import Callable
from pathlib import Path

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.record.checkpoints import DIRECTORY, Checkpoint, Checkpoints, find_checkpoint
from pentad.record.run_dir import RunDir

ORIGIN = "resumed_from"
"""In a manifest's `run`: the checkpoint that `trainer.resume_mode` named when the run began."""


def choose_checkpoint(settings: RunSettings, warn: Callable[[str], None]) -> Checkpoint | None:
    """What `trainer.resume_mode` says; None to begin anew. Its files are compared with their checksums.

    Args:
        warn: is told of damaged checkpoints.

    Raises:
        UserError: a path without a checkpoint, none that is sound, or one of a later step than the last.
    """
    mode, own = settings.trainer.resume_mode, Checkpoints(settings.experiment.run_dir / DIRECTORY)
    if mode == "disable" or (mode == "auto" and settings.experiment.overwrite):
        return None
    if mode == "auto":
        found = own.newest_sound(warn)
    else:
        path = Path(mode).expanduser()
        if not path.exists():
            raise UserError(
                f"trainer.resume_mode: there is no checkpoint or run {mode}",
                "check the path, or set trainer.resume_mode to auto or disable",
            )
        found = find_checkpoint(path, warn)
        # A run that has begun from there goes on from where it is.
        newest = own.newest_sound(warn) if own.steps() else None
        if newest is not None and newest.manifest.run.get(ORIGIN) == str(found.path.resolve()):
            found = newest
    if found is not None and found.manifest.step > settings.trainer.total_steps:
        step, total = found.manifest.step, settings.trainer.total_steps
        raise UserError(
            f"checkpoint {found.path} is of step {step}, and trainer.total_steps is {total}",
            f"set trainer.total_steps to {step} or more, or trainer.resume_mode to an earlier checkpoint",
        )
    return found


def is_own(checkpoint: Checkpoint | None, directory: Path) -> bool:
    """Whether a checkpoint is one of the run in a directory."""
    return checkpoint is not None and checkpoint.path.resolve().parent == (directory / DIRECTORY).resolve()


def is_finished(settings: RunSettings) -> bool:
    """Whether the run directory holds this run with its last step behind it, and it has checkpoints to go on from."""
    if settings.trainer.resume_mode != "auto" or settings.experiment.overwrite:
        return False
    run_dir = RunDir(settings.experiment.run_dir)
    done = run_dir.finished_steps == settings.trainer.total_steps
    return done and bool(Checkpoints(run_dir.checkpoints).steps())


def begins_again(settings: RunSettings, settings_yaml: str) -> bool:
    """Whether the run directory holds what this same command has left before its first checkpoint.

    Args:
        settings_yaml: the effective settings.
    """
    run_dir = RunDir(settings.experiment.run_dir)
    if settings.trainer.resume_mode == "disable" or settings.experiment.overwrite or not settings.trainer.save_freq:
        return False
    if run_dir.finished_steps is not None or run_dir.model.exists() or Checkpoints(run_dir.checkpoints).steps():
        return False
    try:
        return run_dir.config.read_text(encoding="utf-8") == settings_yaml
    except OSError:
        return False
