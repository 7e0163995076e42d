"""Which checkpoint a run goes on from.

Invariant: what `trainer.resume_mode` names is taken, or refused; a run never begins anew where the user asked to go on.
The same command, started again after it was killed, goes on with what it had done.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.record.checkpoints import DIRECTORY, Checkpoint, Checkpoints, find_checkpoint
from pentad.record.run_dir import RunDir, finished_steps

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


def is_finished(settings: RunSettings, settings_yaml: str) -> bool:
    """Whether the run directory holds what this same command has finished.

    Args:
        settings_yaml: the effective settings.

    Raises:
        UserError: it holds a finished run of as many steps with other settings.
    """
    if settings.trainer.resume_mode != "auto" or settings.experiment.overwrite:
        return False
    run_dir, total = RunDir(settings.experiment.run_dir), settings.trainer.total_steps
    if finished_steps(run_dir) != total or not Checkpoints(run_dir.checkpoints).steps():
        return False
    if _is_of(run_dir, settings_yaml):
        return True
    raise UserError(
        f"{run_dir.path} already holds a run that has finished its {total} steps, with other settings",
        "choose another experiment.name, raise trainer.total_steps to go on with that run, or set "
        "experiment.overwrite=true to move it aside",
    )


def _is_of(run_dir: RunDir, settings_yaml: str) -> bool:
    """Whether the run has the same values, wherever they were set; what became of an earlier run is none of it."""
    try:
        return _values(run_dir.config.read_text(encoding="utf-8")) == _values(settings_yaml)
    except (OSError, yaml.YAMLError):
        return False


def _values(settings_yaml: str) -> Any:
    values = yaml.safe_load(settings_yaml)
    if isinstance(values, dict) and isinstance(values.get("experiment"), dict):
        values["experiment"].pop("overwrite", None)
    return values


def begins_again(settings: RunSettings, settings_yaml: str) -> bool:
    """Whether the run directory holds what this same command has left before its first checkpoint.

    Args:
        settings_yaml: the effective settings.
    """
    run_dir = RunDir(settings.experiment.run_dir)
    if settings.trainer.resume_mode == "disable" or settings.experiment.overwrite or not settings.trainer.save_freq:
        return False
    if finished_steps(run_dir) is not None or run_dir.model.exists() or Checkpoints(run_dir.checkpoints).steps():
        return False
    return _is_of(run_dir, settings_yaml)
