"""Which runs there are in a directory, and what became of them.

Invariant: nothing is written; a run whose files cannot be read is listed with the reason.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pentad.errors import UserError
from pentad.record.run_data import RunData, load_run
from pentad.record.run_dir import RunDir


@dataclass(frozen=True)
class RunRow:
    """A run in a line.

    Attributes:
        state: `finished`, `failed`, `interrupted`, `running`, `stopped` (killed, that is), or what cannot be read.
        step: the last one; None before the first.
        total: steps that the run is to have, if that is known.
        reward: of the last step that has one.
        evals: the last value of each evaluation: its accuracy, or loss.
        seconds: of the whole run, or of its steps so far.
    """

    path: Path
    name: str
    state: str
    step: int | None = None
    total: int | None = None
    reward: float | None = None
    evals: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


def find_runs(directory: Path) -> list[RunRow]:
    """The runs in a directory and in the directories below it, the one that was written to last at the end.

    Raises:
        UserError: there is no such directory.
    """
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}", "name a directory of runs, such as runs")
    found = sorted(set(_directories(directory, 2)), key=_written)
    return [describe_run(path) for path in found]


def describe_run(path: Path) -> RunRow:
    """One run in a line."""
    run_dir = RunDir(path)
    state, outcome = _state(run_dir)
    if not run_dir.metrics.is_file():
        return RunRow(path, path.name, state)
    try:
        data = load_run(run_dir)
    except UserError as error:
        return RunRow(path, path.name, f"unreadable: {error.cause}")
    rewards = data.values("reward/mean")
    return RunRow(
        path,
        run_name(data, path),
        state,
        max(data.rows, default=None),
        data.total_steps,
        rewards[-1] if rewards else None,
        _evals(data),
        outcome.get("seconds") or sum(data.values("time/step")) or None,
    )


def run_name(data: RunData, path: Path) -> str:
    """`experiment.name`, or the name of the directory."""
    experiment = data.settings.get("experiment")
    named = experiment.get("name") if isinstance(experiment, dict) else None
    return str(named or path.absolute().name)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, as text."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat_settings(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def different_settings(runs: list[RunData]) -> dict[str, tuple[str, ...]]:
    """Settings that are not the same in all runs: name -> the value of each run; empty where it has none."""
    flat = [flat_settings(data.settings) for data in runs]
    names = dict.fromkeys(name for each in flat for name in each)
    values = {name: tuple(each.get(name, "") for each in flat) for name in names}
    own = ("experiment.name", "experiment.dir", "experiment.overwrite")
    return {name: found for name, found in values.items() if len(set(found)) > 1 and name not in own}


def _evals(data: RunData) -> dict[str, float]:
    found = {}
    for name in data.names:
        parts = name.split("/")
        if parts[0] == "eval" and parts[-1] in ("accuracy", "loss", "preference_accuracy") and data.values(name):
            found[parts[1]] = data.values(name)[-1]
    return found


def _state(run_dir: RunDir) -> tuple[str, dict[str, Any]]:
    try:
        outcome = json.loads(run_dir.outcome.read_text())
        if isinstance(outcome, dict) and isinstance(outcome.get("outcome"), str):
            return outcome["outcome"], outcome
    except (OSError, ValueError):
        pass
    return ("running" if _is_locked(run_dir.path / ".lock") else "stopped"), {}


def _is_locked(lock: Path) -> bool:
    """Whether a process of this machine writes to the run: it holds a lock as long as it lives."""
    try:
        inode = str(lock.stat().st_ino)
        # Looked up, not tried: a lock of ours, however short, could keep a run from starting.
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any("FLOCK" in line and inode in line.replace(":", " ").split() for line in locks)


def _directories(directory: Path, depth: int) -> Iterator[Path]:
    run_dir = RunDir(directory)
    if run_dir.metrics.is_file() or (run_dir.config.is_file() and run_dir.versions.is_file()):
        yield directory
        return
    if depth:
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                yield from _directories(path, depth - 1)


def _written(path: Path) -> tuple[float, str]:
    run_dir = RunDir(path)
    times = [file.stat().st_mtime for file in (run_dir.metrics, run_dir.config) if file.is_file()]
    return (max(times, default=0.0), str(path))
