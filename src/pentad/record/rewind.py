"""Bringing the records of a run back to a step, so that a run which goes on from there records each step once.

Invariant: rows of later steps are cut off and nothing else changes; a file is replaced as a whole or not at all.
"""

import json
import os
from pathlib import Path

from pentad.record.run_dir import RunDir


def rewind(run_dir: RunDir, step: int) -> int:
    """Cut metrics, samples, spans, warnings and distributions of steps after `step`.

    Returns:
        how many steps' metrics were cut.

    Raises:
        UserError: the disk is full.
    """
    with run_dir.writing():
        cut = _cut(run_dir.metrics, step)
        _cut(run_dir.samples, step)
        _cut(run_dir.spans, step)
        _cut(run_dir.warnings, step)
        _cut(run_dir.distributions, step)
        run_dir.outcome.unlink(missing_ok=True)
    return len(cut)


def _cut(path: Path, step: int) -> set[int]:
    """Remove rows of later steps, and an unfinished last line; returns the steps that were removed."""
    if not path.exists():
        return set()
    kept, removed, whole = [], set(), True
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                whole = False
            elif (found := _step_of(line)) is not None and found > step:
                removed.add(found)
            else:
                kept.append(line)
    if removed or not whole:
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    return removed


def _step_of(line: bytes) -> int | None:
    """The step of a row; None where it cannot be told. Such rows stay, for `read_jsonl` to name them."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
