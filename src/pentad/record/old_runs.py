"""Earlier runs: what may be moved aside for a new run, and how many of them are kept.

Invariant: a directory is moved or removed only if a run of Pentad has written it and it holds no other files.
"""

import fcntl
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

# Of one run directory; an older one is removed when another is moved aside.
KEPT = 3

_MARK = ".old-"
# What a run writes into its directory, and the files that every run has.
NAMES = frozenset(
    {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "samples.jsonl",
        "spans.jsonl",
        "warnings.jsonl",
        "distributions.jsonl",
        "lengths.json",
        "rewards.log",
        ".lengths.json",
        "outcome.json",
        "report.html",
        ".report.html",
        "tensorboard",
        "wandb",
        "mlruns",
        "swanlog",
        "model",
        "model.partial",
        "model.new",
        "model.new.partial",
        "model.old",
        "critic",
        "critic.partial",
        "critic.new",
        "critic.new.partial",
        "critic.old",
        "checkpoints",
        "hf",
        "failures.jsonl",
        "wandb.id",
        "mlflow.id",
        "swanlab.id",
        ".wandb.id.partial",
        ".mlflow.id.partial",
        ".swanlab.id.partial",
        ".metrics.jsonl.partial",
        ".samples.jsonl.partial",
        ".spans.jsonl.partial",
        ".warnings.jsonl.partial",
        ".lock",
    }
)
_ALWAYS = ("config.yaml", "versions.json")


def why_not_movable(path: Path) -> str | None:
    """Why a directory must not be moved aside as an earlier run; None where it may be.

    Args:
        path: absolute, without symbolic links.
    """
    if path == Path(path.anchor):
        return "it is the root of the file system"
    missing = [name for name in _ALWAYS if not (path / name).is_file()]
    if missing:
        return f"it is not the directory of a run: it has no {missing[0]}"
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in NAMES)
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        return f"it also holds {shown}, which no run has written"
    with suppress(OSError):  # the working directory may be gone
        if Path.cwd().resolve().is_relative_to(path):
            return "it holds the working directory"
    return None


def move_aside(path: Path) -> Path:
    """Rename a run directory to `<path>.old-<time>` and return that."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    # Of the same second, the last has the highest number, also where the first was removed.
    last = max((_count(match) for match, _ in _stamped(path) if match[1] == stamp), default=0)
    target = path.with_name(f"{path.name}{_MARK}{stamp}" + (f"-{last + 1}" if last else ""))
    path.rename(target)
    return target


def _stamped(path: Path) -> list[tuple[re.Match[str], Path]]:
    """What is named as an earlier run of a run directory: the match of time and number, and the path."""
    pattern = re.compile(re.escape(path.name + _MARK) + r"(\d{8}-\d{6})(?:-(\d+))?")
    return [(match, other) for other in path.parent.iterdir() if (match := pattern.fullmatch(other.name))]


def _count(match: re.Match[str]) -> int:
    return int(match[2] or 1)


def remove_oldest(path: Path, keep: int = KEPT) -> list[Path]:
    """Remove earlier runs of a run directory but the last `keep`; returns those that were removed.

    What is not a run, and a run that a process still writes to, stays and is not counted.
    """
    found = sorted(_stamped(path), key=lambda pair: (pair[0][1], _count(pair[0])))
    runs = [run for _, run in found if run.is_dir() and not run.is_symlink() and why_not_movable(run) is None]
    removed = []
    for run in runs[: max(0, len(runs) - keep)]:
        if _is_locked(run):
            continue
        shutil.rmtree(run, ignore_errors=True)
        if not run.exists():
            removed.append(run)
    return removed


def _is_locked(run: Path) -> bool:
    try:
        lock = os.open(run / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
