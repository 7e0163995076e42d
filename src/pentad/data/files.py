"""Reading .jsonl and .parquet files, one or a directory of them.

Invariant: what is yielded is every row of every file, in the order of the file names, each with its place.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pentad.errors import UserError

SUFFIXES = (".jsonl", ".parquet")
# A directory with one of these holds splits, not shards of one set; reading all would train on the test set.
SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "dev", "eval"}


def read_files(source: str, setting: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, row) of a file or of the files directly inside a directory.

    Raises:
        UserError: nothing is there, it is of another kind, it cannot be read, or a directory mixes splits.
    """
    for path in _find(source, setting):
        yield from _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)


def _find(source: str, setting: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise UserError(f"{setting}={source} is a directory without .jsonl or .parquet files", _nearby(path))
        splits = [file for file in files if file.stem in SPLIT_NAMES]
        if splits and len(files) > 1:
            raise UserError(
                f"{setting}={source} is a directory with several splits: {', '.join(f.name for f in files)}",
                f"name one, e.g. {setting}={splits[-1 if 'eval' in setting else 0]}",
            )
        return files
    if not path.exists():
        raise UserError(f"{setting}={source} does not exist", _nearby(path))
    if path.suffix not in SUFFIXES:
        hint = (
            "put one JSON object a line and name it .jsonl" if path.suffix == ".json" else "convert it to one of them"
        )
        raise UserError(f"{setting}={source} is neither .jsonl nor .parquet", hint)
    return [path]


def _nearby(path: Path) -> str:
    """A fix that names the files that are there."""
    parent = path if path.is_dir() else path.parent
    while not parent.is_dir():
        parent = parent.parent
    if parent != path and parent != path.parent:
        return f"check the path; the nearest directory that exists is {parent}"
    names = sorted(entry.name for entry in parent.iterdir())
    nearest = (
        difflib.get_close_matches(path.name, names, 3, cutoff=0.5) or [n for n in names if n.endswith(SUFFIXES)][:5]
    )
    return f"in {parent} there is: {', '.join(nearest)}" if nearest else f"{parent} holds no data; check the path"


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    line_number = 0
    try:
        # -sig: Windows programs put a mark before the text.
        with path.open(encoding="utf-8-sig") as file:
            for line_number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(
                        f"{path}:{line_number}: a line must be a JSON object, not {type(row).__name__}",
                        "put one {...} a line",
                    )
                yield f"{path.name}:{line_number}", row
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{line_number}: not JSON: {error.msg} at column {error.colno}", "fix or remove the line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text after line {line_number}: {error.reason}", "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error


def _read_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path.name}[{index}]", row
                    index += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}", "write it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", "check the file") from error
