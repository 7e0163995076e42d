"""The run directory: one run, one directory, every file in a known place.

Invariant: a directory that holds a run is never written to by another run, and nothing in it is ever deleted;
with `experiment.overwrite` it is moved aside as a whole. A run that is refused before it begins leaves no trace.
"""

import errno
import fcntl
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.filesize import decimal

from pentad.errors import UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER_PLACE = "set experiment.dir to another directory"


class RunDir:
    """The names of a run's files.

    `RunDir(path)` only names them; `RunDir.reserve` locks the directory, and `begin` makes it this run's.

    Attributes:
        begun: whether `begin` has been called.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.samples = self.path / "samples.jsonl"
        self.rewards_log = self.path / "rewards.log"
        self.report = self.path / "report.html"
        self.model = self.path / "model"
        self.begun = False
        self._settings_yaml = ""
        self._lock: int | None = None
        # What `reserve` has made, to be taken away again by a run that never begins.
        self._made: list[Path] = []

    @classmethod
    def reserve(cls, path: Path | str, settings_yaml: str, overwrite: bool = False, needed_bytes: int = 0) -> Self:
        """Lock the directory for this process, and refuse what can be refused; what is in it stays as it is.

        Args:
            path: the directory; parents are made. A symbolic link is followed.
            settings_yaml: the effective settings, as they will stand in config.yaml.
            overwrite: move a directory that already holds a run to `<path>.old-<time>` instead of refusing it.
            needed_bytes: what the run will write in all; checked against the free space.

        Raises:
            UserError: the path is a file, cannot be written, holds a run, is in use by another process, or
                lies on a file system with too little space.
        """
        run_dir = cls(Path(path).absolute().resolve())
        run_dir._settings_yaml = settings_yaml
        with _writable(run_dir.path), run_dir.writing():
            _check_space(run_dir.path, needed_bytes)
            run_dir._take()
            try:
                leftovers = run_dir._leftovers()
                if leftovers and not overwrite:
                    raise UserError(
                        f"{run_dir.path} already holds {' and '.join(leftovers)}",
                        "choose another experiment.name or experiment.dir, or set experiment.overwrite=true "
                        "to move the old directory aside",
                    )
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
            if self._leftovers():
                self._move_aside()
            self.config.write_text(self._settings_yaml, encoding="utf-8")
            self.begun = True
            self.versions.write_text(json.dumps(collect_versions(), indent=2) + "\n", encoding="utf-8")

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
        """Give up the lock. The files of a run that has begun stay; of any other nothing does."""
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
        """What of an earlier run, or of somebody else, this run would write over."""
        found = [file.name for file in (self.metrics, self.samples, self.report, self.model) if file.exists()]
        # Settings alone are left by a run that failed before its first step: that is no loss. Where versions.json
        # is not ours too, though, config.yaml belongs to somebody else.
        if self.config.exists() and not self.versions.exists():
            found.append(self.config.name)
        return found

    def _unmake(self) -> None:
        """Take away what `reserve` made, while the lock is held; not what somebody has put something into since."""
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
        stamp = time.strftime("%Y%m%d-%H%M%S")
        target = self.path.with_name(f"{self.path.name}.old-{stamp}")
        count = 1
        while target.exists():
            count += 1
            target = self.path.with_name(f"{self.path.name}.old-{stamp}-{count}")
        self.path.rename(target)
        lock, self._lock = self._lock, None
        assert lock is not None
        os.close(lock)
        self._take()


def collect_versions() -> dict[str, Any]:
    """What ran: Python, platform, every installed package, the GPUs of this machine, pentad's git commit if any."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": _gpus(),
        "git_commit": _git_commit(),
        "packages": dict(sorted((dist.name, dist.version) for dist in metadata.distributions() if dist.name)),
    }


def _gpus() -> list[str]:
    # nvidia-smi rather than torch: asking torch would initialise CUDA in the driver process, which trains nothing.
    if not (tool := shutil.which("nvidia-smi")):
        return []
    return _output(tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader").splitlines()


def _git_commit() -> str | None:
    """The commit of the checkout that this file is tracked in, with "+changes" if it has been changed since."""
    here = Path(__file__).parent
    # A virtual environment may lie inside somebody else's repository: that repository's commit says nothing.
    if not (shutil.which("git") and _output("git", "-C", str(here), "ls-files", Path(__file__).name)):
        return None
    commit = _output("git", "-C", str(here), "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _output("git", "-C", str(here), "status", "--porcelain", "-uno") else "")


def _output(*command: str) -> str:
    """Standard output of a command; empty if it fails: what it would have told is then unknown, not wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


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
