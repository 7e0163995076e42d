"""Run directories in which a run has begun."""

from pathlib import Path

from pentad.record.run_dir import RunDir


def begun(path: Path, settings_yaml: str, overwrite: bool = False, needed_bytes: int = 0) -> RunDir:
    """Reserved and begun, or given up."""
    run_dir = RunDir.reserve(path, settings_yaml, overwrite, needed_bytes)
    try:
        run_dir.begin()
    except BaseException:
        run_dir.close()
        raise
    return run_dir
