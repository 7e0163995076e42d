"""The run directory: one run, one directory, every file in a known place.

Invariant: a directory that holds a run is never written to by another run; with `experiment.overwrite` it is moved
aside as a whole, and the last few of those are kept (`pentad.record.old_runs`). A run that is refused before it begins
leaves no trace.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.filesize import decimal

from pentad.errors import UserError
from pentad.record.machine import collect_versions
from pentad.record.old_runs import move_aside, remove_oldest, why_not_movable

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER_PLACE = "set experiment.dir to another directory"


class RunDir:
    """The names of a run's files.

    `RunDir(path)` only names them; `RunDir.reserve` locks the directory, and `begin` makes it this run's.

    Attributes:
        begun: whether `begin` has been called.
        removed: earlier runs that `begin` has removed.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples.jsonl"
        self.spans = self.path / "spans.jsonl"
        self.warnings = self.path / "warnings.jsonl"
        self.distributions = self.path / "distributions.jsonl"
        self.rewards_log = self.path / "rewards.log"
        self.lengths = self.path / "lengths.json"
        self.outcome = self.path / "outcome.json"
        self.report = self.path / "report.html"
        self.model = self.path / "model"
        self.critic = self.path / "critic"
        self.checkpoints = self.path / "checkpoints"
        self.wandb_id = self.path / "wandb.id"
        self.mlflow_id = self.path / "mlflow.id"
        self.swanlab_id = self.path / "swanlab.id"
        self.failures = self.path / "failures.jsonl"
        self.exports = self.path / "hf"
        self.begun = False
        self.removed: list[Path] = []
        self._settings_yaml = ""
        self._goes_on = False
        self._lock: int | None = None
        # What `reserve` has made; removed again by a run that never begins.
        self._made: list[Path] = []

    @classmethod
    def reserve(
        cls,
        path: Path | str,
        settings_yaml: str,
        overwrite: bool = False,
        needed_bytes: int = 0,
        *,
        goes_on: bool = False,
    ) -> Self:
        """Lock the directory for this process, and refuse what can be refused; what is in it stays as it is.

        Args:
            path: the directory; parents are made. A symbolic link is followed.
            settings_yaml: the effective settings, as they will stand in config.yaml.
            overwrite: let `begin` move a directory that already holds a run to `<path>.old-<time>`.
            needed_bytes: what the run will write in all; checked against the free space.
            goes_on: the run that the directory holds is gone on with.

        Raises:
            UserError: the path is a file or the root of the file system, cannot be written, holds a run or files of
                others, is in use by another process, or lies on a file system with too little space.
        """
        run_dir = cls(Path(path).absolute().resolve())
        run_dir._settings_yaml = settings_yaml
        run_dir._goes_on = goes_on
        if run_dir.path == Path(run_dir.path.anchor):
            raise UserError(f"the run directory is {run_dir.path}, the root of the file system", _OTHER_PLACE)
        with _writable(run_dir.path), run_dir.writing():
            # What the run has written already needs no more space.
            written = (run_dir.checkpoints, run_dir.exports, run_dir.model, run_dir.critic) if goes_on else ()
            _check_space(run_dir.path, needed_bytes - sum(map(_size, written)))
            run_dir._take()
            try:
                run_dir._check_leftovers(overwrite)
            except BaseException:
                run_dir.close()
                raise
        return run_dir

    def begin(self) -> None:
        """Move what an earlier run has left aside, and write config.yaml and versions.json.

        Raises:
            UserError: the directory cannot be written.
        """
        with _writable(self.path), self.writing():
            versions = json.dumps(collect_versions(), indent=2) + "\n"
            if self._leftovers():
                self._move_aside()
                self.removed = remove_oldest(self.path)
            # The settings last: with them, and without versions, a directory would not be one that a run has written.
            self.versions.write_text(versions, encoding="utf-8")
            self.config.write_text(self._settings_yaml, encoding="utf-8")
            self.begun = True

    def end(self, outcome: str, seconds: float, steps: int | None = None) -> None:
        """Write outcome.json: how the run ended, and how long it took.

        Args:
            outcome: `finished`, `failed` or `interrupted`.
            seconds: from the start of the command.
            steps: that the run had, if it is finished.
        """
        row = {"outcome": outcome, "seconds": round(seconds, 1), **({} if steps is None else {"steps": steps})}
        with self.writing():
            self.outcome.write_text(json.dumps(row) + "\n")

    @property
    def moves_aside(self) -> bool:
        """Whether `begin` will move what is in the directory."""
        return not self.begun and bool(self._leftovers())

    @contextmanager
    def writing(self) -> Generator[None]:
        """Turn "no space left" and "quota exceeded" within the block into a UserError that names the directory."""
        try:
            yield
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
            raise UserError(
                f"{what}: cannot write to the run directory {self.path}",
                f"free some space there, or {_OTHER_PLACE} on a larger file system",
            ) from error

    def close(self) -> None:
        """Release the lock; remove what `reserve` made if the run has not begun."""
        if self._lock is not None:
            if not self.begun:
                self._unmake()
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    def _leftovers(self) -> list[str]:
        """Names of the files in the directory that this run would overwrite."""
        if self._goes_on:
            return []
        files = (self.metrics, self.samples, self.report, self.model, self.critic, self.checkpoints, self.exports)
        found = [file.name for file in files if file.exists()]
        # A run that failed before its first step leaves config.yaml and versions.json, which may be replaced. A
        # config.yaml without versions.json was not written by a run.
        if self.config.exists() and not self.versions.exists():
            found.append(self.config.name)
        return found

    def _check_leftovers(self, overwrite: bool) -> None:
        if not (leftovers := self._leftovers()):
            return
        holds, other = f"{self.path} already holds {' and '.join(leftovers)}", "choose another experiment.name or "
        reason = why_not_movable(self.path)
        if not overwrite:
            advice = "" if reason else ", or set experiment.overwrite=true to move the old run aside"
            raise UserError(holds, f"{other}experiment.dir{advice}")
        if reason:
            raise UserError(
                f"{holds}, and experiment.overwrite=true must not move it aside: {reason}",
                f"{other}experiment.dir, or move the files away yourself",
            )

    def _unmake(self) -> None:
        """Remove what `reserve` made, while the lock is held; directories that other files were put into stay."""
        for path in reversed(self._made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        self._made = []

    def _take(self) -> None:
        """Make the directory and lock it; the lock is released by the kernel when the process ends, however."""
        while True:
            missing = [path for path in (self._lock_file, self.path, *self.path.parents) if not path.exists()]
            self._made = missing[::-1]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(lock)
                try:
                    current = os.stat(self._lock_file)
                except FileNotFoundError:
                    current = None
            except OSError as error:
                os.close(lock)
                if isinstance(error, BlockingIOError):
                    raise UserError(
                        f"another process is writing a run to {self.path}",
                        "wait for it, stop it, or choose another experiment.name or experiment.dir",
                    ) from error
                if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise UserError(
                        f"the file system of {self.path} has no file locks",
                        f"{_OTHER_PLACE} on a file system with locks (Lustre: mount option flock)",
                    ) from error
                raise
            # Another process may have moved the directory aside between open and flock; then this lock is in the
            # old directory and guards nothing.
            if current is not None and (current.st_dev, current.st_ino) == (held.st_dev, held.st_ino):
                self._lock = lock
                return
            os.close(lock)

    def _move_aside(self) -> None:
        move_aside(self.path)
        lock, self._lock = self._lock, None
        assert lock is not None
        os.close(lock)
        self._take()


def finished_steps(run_dir: RunDir) -> int | None:
    """The steps of the finished run that a directory holds; None if it holds none."""
    try:
        row = json.loads(run_dir.outcome.read_text())
        return row["steps"] if row["outcome"] == "finished" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def _check_space(path: Path, needed_bytes: int) -> None:
    place = path
    while not place.is_dir() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed_bytes > free:
        raise UserError(
            f"the run will write about {decimal(needed_bytes)} to {path}, but only {decimal(free)} are free there",
            f"free some space, or {_OTHER_PLACE} on a larger file system",
        )


@contextmanager
def _writable(path: Path) -> Generator[None]:
    """Name the run directory in errors that say that it cannot be made or written."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"the run directory {path} is, or lies below, a file", _OTHER_PLACE) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ENOENT, errno.ENAMETOOLONG):
            raise
        raise UserError(f"cannot write to the run directory {path}: {error.strerror}", _OTHER_PLACE) from error
