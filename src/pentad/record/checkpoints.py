"""The checkpoints of a run on the disk.

Invariant: a directory `step-NNNNNNNN` is a complete checkpoint, and stays one until `prune` has first renamed it. What
is being written has another name, and gets this one when all of it is on the disk. What is there is found by looking;
no file names the latest. So whenever the writer is killed, all checkpoints that were there are there.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pentad.errors import UserError
from pentad.record.manifest import NAME, DamagedError, Manifest, check_files, read_manifest, write_manifest

_COMPLETE = re.compile(r"step-(\d{8,})")
_PARTIAL, _OLD = ".partial", ".old"
DIRECTORY = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    manifest: Manifest


class Checkpoints:
    """The checkpoints in one directory.

    Args:
        directory: of the checkpoints; made when the first is written.

    Example::

        partial = checkpoints.open(step=10)
        ...  # write files into it
        checkpoints.complete(partial, manifest)
        checkpoints.prune(keep=2)
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def steps(self) -> dict[int, Path]:
        """The complete checkpoints by step, in order."""
        if not self.directory.is_dir():
            return {}
        found = {int(match[1]): path for path in self.directory.iterdir() if (match := _COMPLETE.fullmatch(path.name))}
        return dict(sorted(found.items()))

    def open(self, step: int) -> Path:
        """A new directory for what will be the checkpoint of a step; what an earlier attempt has left is removed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / f".step-{step:08d}{_PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        return partial

    def complete(self, partial: Path, manifest: Manifest) -> Checkpoint:
        """Make what was written into `partial` the checkpoint of its step.

        Args:
            manifest: of all files that were written; they are on the disk.
        """
        target = self.directory / partial.name.removeprefix(".").removesuffix(_PARTIAL)
        return publish(partial, target, manifest)

    def discard(self, partial: Path) -> None:
        """Remove what was written of a checkpoint that will not be."""
        shutil.rmtree(partial, ignore_errors=True)

    def clean(self) -> None:
        """Remove what killed writers have left."""
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                if path.name.startswith(".step-"):
                    shutil.rmtree(path, ignore_errors=True)

    def newest_sound(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose files are what was written; None where there is none at all.

        Args:
            warn: is told of each damaged one.

        Raises:
            UserError: checkpoints are there, and none is sound; or one was written by a later version of Pentad.
        """
        paths = list(self.steps().values())
        for path in reversed(paths):
            try:
                return sound(path)
            except DamagedError as error:
                warn(f"{error.cause}; the one before it is taken")
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints in {self.directory} is sound",
                "start a new run with another experiment.name, or move the checkpoints away",
            )
        return None

    def set_aside_after(self, step: int) -> list[Path]:
        """Rename the checkpoints of later steps: the run goes back behind them, and will write its own.

        Returns:
            their new names.
        """
        moved = []
        # The newest first: the run goes on from the newest that is left, if it is killed in between.
        for later, path in reversed(self.steps().items()):
            if later > step:
                number = 1
                while (target := path.with_name(f"{path.name}{_OLD}-{number}")).exists():
                    number += 1
                path.rename(target)
                moved.append(target)
        return moved

    def prune(self, keep: int, best: Callable[[Mapping[str, float | None]], float | None] | None = None) -> list[Path]:
        """Remove all but the newest.

        Args:
            keep: how many are kept; at least 1.
            best: the value of a checkpoint's metrics, of which the highest is kept besides; None where it has none.

        Returns:
            what was removed.
        """
        steps = self.steps()
        kept = set(list(steps.values())[-max(keep, 1) :])
        if best is not None:
            valued = [(value, step) for step, path in steps.items() if (value := _value(path, best)) is not None]
            if valued:
                kept.add(steps[max(valued)[1]])
        removed = [path for path in steps.values() if path not in kept]
        for path in removed:
            _remove(path)
        return removed


def publish(partial: Path, target: Path, manifest: Manifest) -> Checkpoint:
    """Give a checkpoint its manifest and its name; one that has this name is removed.

    Args:
        partial: the directory that it was written to, in that of the target.
        manifest: of all files that were written; they are on the disk.
    """
    write_manifest(manifest, partial)
    for directory in {(partial / file.name).parent for file in manifest.files} | {partial}:
        _sync(directory)
    if target.exists():
        # Of this step there is one already: it was damaged, or the run went back to an earlier one.
        _remove(target)
    partial.rename(target)
    _sync(target.parent)
    return Checkpoint(target, manifest)


def sound(path: Path, *, contents: bool = True) -> Checkpoint:
    """The checkpoint in a directory, its files compared with its manifest.

    Raises:
        DamagedError: a file is not what was written.
        UserError: a later version of Pentad has written it.
    """
    manifest = read_manifest(path)
    check_files(path, manifest, contents=contents)
    return Checkpoint(path, manifest)


def find_checkpoint(path: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that a path names: its own directory, or the newest of a run or of a directory of checkpoints.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if (path / NAME).exists() or _COMPLETE.fullmatch(path.name):
        if not path.is_dir():
            raise UserError(f"there is no checkpoint {path}", "check the path; `pentad checkpoint ls RUN` lists them")
        return sound(path)
    for directory in (path / DIRECTORY, path):
        if found := Checkpoints(directory).newest_sound(warn):
            return found
    raise UserError(
        f"{path} holds no checkpoint", "name a run, its directory of checkpoints, or one checkpoint (step-00000010)"
    )


def _value(path: Path, best: Callable[[Mapping[str, float | None]], float | None]) -> float | None:
    try:
        return best(read_manifest(path).metrics)
    except UserError:
        return None


def _remove(path: Path) -> None:
    """Under another name first: half a checkpoint must not look like one."""
    removing = path.with_name(f".{path.name}.removing")
    shutil.rmtree(removing, ignore_errors=True)
    path.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
