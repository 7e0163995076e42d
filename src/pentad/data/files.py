"""Reading files of rows, one or a directory of them: .jsonl, .json, .csv, .tsv, .parquet, and .gz of these.

Invariant: what is yielded is every row of every file, in the order of the file names, each with its place.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pentad.errors import UserError

_PLAIN = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*_PLAIN, *(f"{suffix}.gz" for suffix in _PLAIN))
# A directory with one of these holds splits, not shards of one set; reading all would train on the test set.
SPLIT_NAMES = {"train", "test", "val", "valid", "validation", "dev", "eval"}
# Keys under which a .json file that is one object may hold its rows.
_LIST_KEYS = ("data", "rows", "examples")

Record = tuple[str, Mapping[str, Any]]


def read_files(source: str, setting: str) -> Iterator[Record]:
    """Yield (place, row) of a file or of the files directly inside a directory.

    Raises:
        UserError: nothing is there, it is of another kind, it cannot be read, or a directory mixes splits.
    """
    for path in _find(source, setting):
        try:
            yield from _READERS[_kind(path)](path)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text: {error.reason}", "save the file as UTF-8") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path} is not a whole gzip file: {error}", "write or download it again") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}", "check its permissions") from error


def _kind(path: Path) -> str:
    """The suffix that says what is in a file, `.gz` aside; empty for none that is known."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in _PLAIN if name.endswith(suffix)), "")


def _find(source: str, setting: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _kind(file) and file.name[0] != ".")
        if not files:
            raise UserError(f"{setting}={source} is a directory without {_listed()} files", _nearby(path))
        _check_splits(files, source, setting)
        return files
    if not path.exists():
        raise UserError(f"{setting}={source} does not exist", _nearby(path))
    if not _kind(path):
        raise UserError(f"{setting}={source} is none of {_listed()}", "convert it to one of them, or rename it")
    return [path]


def _listed() -> str:
    return ", ".join(_PLAIN[:-1]) + f" or {_PLAIN[-1]}"


def _check_splits(files: list[Path], source: str, setting: str) -> None:
    """Refuse a directory with files of several splits, such as train.jsonl or train-00000-of-00002.parquet."""
    stems = {file: file.name.partition(".")[0] for file in files}
    splits = [file for file, stem in stems.items() if stem.partition("-")[0] in SPLIT_NAMES]
    named = {stems[file].partition("-")[0] for file in splits}
    shards = len(named) == 1 and len(splits) == len(files) and all("-" in stem for stem in stems.values())
    if splits and len(files) > 1 and not shards:
        raise UserError(
            f"{setting}={source} is a directory with several splits: {', '.join(f.name for f in files)}",
            f"name one, e.g. {setting}={splits[-1 if 'eval' in setting else 0]}",
        )


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
    if path.is_dir() and (inside := [name for name in names if (parent / name).is_dir()]):
        nearest = nearest or [f"{name}/" for name in inside[:3]]
    return f"in {parent} there is: {', '.join(nearest)}" if nearest else f"{parent} holds no data; check the path"


def _open(path: Path) -> io.TextIOBase:
    # -sig: Windows programs put a mark before the text.
    if path.name.lower().endswith(".gz"):
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_jsonl(path: Path) -> Iterator[Record]:
    line_number = 0
    with _open(path) as file:
        try:
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


def _read_json(path: Path) -> Iterator[Record]:
    """A list of objects, an object with such a list, or (as many files of that name hold) an object a line."""
    with _open(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if _begins_as_lines(text):
            yield from _read_jsonl(path)
            return
        raise UserError(
            f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}", "fix the file at that place"
        ) from error
    rows = value
    if isinstance(value, dict):
        lists = [key for key in _LIST_KEYS if isinstance(value.get(key), list)]
        if len(lists) > 1:
            raise UserError(
                f"{path} holds several lists of rows: {', '.join(lists)}", "write each into a file of its own"
            )
        # One object a line, and one line.
        rows = value[lists[0]] if lists else [value]
    if not isinstance(rows, list):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, not a list of objects", "write [{...}, {...}]")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}[{index}]: a row must be a JSON object, not {type(row).__name__}", "write [{...}, {...}]"
            )
        yield f"{path.name}[{index}]", row


def _begins_as_lines(text: str) -> bool:
    line = text.lstrip().partition("\n")[0]
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _read_csv(path: Path) -> Iterator[Record]:
    """Rows under a header; every value is text, and a cell that is missing or empty is None."""
    delimiter = "\t" if _kind(path) == ".tsv" else ","
    with _open(path) as file:
        old = csv.field_size_limit(1 << 30)
        try:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            if reader.fieldnames and len(set(reader.fieldnames)) < len(reader.fieldnames):
                raise UserError(f"{path}: the header names a column twice", "give each column a name of its own")
            for row in reader:
                if None in row:
                    raise UserError(
                        f"{path}:{reader.line_num}: the line has more cells than the header",
                        f"put cells that hold {delimiter!r} in quotes",
                    )
                yield f"{path.name}:{reader.line_num}", {name: cell or None for name, cell in row.items()}
        except csv.Error as error:
            raise UserError(f"{path}: not a CSV file: {error}", "write it again, with cells in quotes") from error
        finally:
            csv.field_size_limit(old)


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    zipped = path.name.lower().endswith(".gz")
    try:
        place: Any = pyarrow.BufferReader(gzip.decompress(path.read_bytes())) if zipped else path
        with pyarrow.parquet.ParquetFile(place) as file:
            index = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield f"{path.name}[{index}]", row
                    index += 1
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}", "write it again") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
