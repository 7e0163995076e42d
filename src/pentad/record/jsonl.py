"""Files of one JSON object a line.

Invariant: every whole line is valid JSON. A process that is killed costs at most the line that was being written. Lines
that a full disk does not take are kept in memory, and written with the next one that it takes.
"""

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pentad.errors import UserError
from pentad.record.run_dir import RunDir

_log = logging.getLogger(__name__)
# Lines that are kept while the disk is full, in bytes.
_MOST_WAITING = 64 << 20


class JsonLines:
    """An appended file in a run directory. It appears with its first line."""

    def __init__(self, path: Path, run_dir: RunDir) -> None:
        self._path = path
        self._run_dir = run_dir
        self._file: int | None = None
        self._waiting = b""

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and hand it to the operating system; while the disk is full, keep it for the next time.

        Raises:
            UserError: the disk is full, and has been for 64 MiB of lines.
            ValueError: a number is not finite.
        """
        text = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        # Text decoded from tokens may hold lone surrogates; as \udXXX they are valid JSON.
        data = text.encode("utf-8", errors="backslashreplace")
        data = self._waiting + data
        try:
            self._write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or len(data) > _MOST_WAITING:
                with self._run_dir.writing():
                    raise
            if not self._waiting:
                _log.warning("%s: %s; lines are kept in memory until they can be written", self._path, error.strerror)
            self._waiting = data
        else:
            self._waiting = b""

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        start = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:
            # Remove the half line, where the file can be truncated (a device cannot).
            with suppress(OSError):
                os.ftruncate(self._file, start)
            raise

    def close(self) -> None:
        """Close the file; it may be closed twice.

        Raises:
            UserError: the disk is still full.
        """
        if self._waiting:
            waiting, self._waiting = self._waiting, b""
            with self._run_dir.writing():
                self._write(waiting)
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_jsonl(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file. An unfinished last line, as a killed process leaves it, is reported in `notes`.

    Raises:
        UserError: a line is no JSON object; it is named.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                notes.append(f"The last line of {path.name} is unfinished and was left out.")
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number} is not valid JSON: {error}", "remove that line") from error
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise UserError(f"{path}:{number} is not a JSON object with a whole number `step`", "remove that line")
            yield row
