"""What users' code prints in worker processes.

Invariant: nothing of it reaches the terminal; each worker's output is kept in order, whole up to a bound.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

MAX_PIECE = 64 << 10  # bytes of one worker's output between two looks at it
MAX_FILE = 64 << 20
_TRUNCATE_AT = 1 << 20
_MAX_LINE = 300  # characters


class WorkerOutput:
    """An unnamed file that takes the standard output and standard error of one worker."""

    def __init__(self) -> None:
        file, name = tempfile.mkstemp(prefix="pentad-worker-")
        os.unlink(name)
        # So that the file may be cut off while the worker writes.
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
        self.file = file
        self._taken = 0

    def take(self) -> bytes:
        """What was written since the last call; of more than `MAX_PIECE` bytes, the beginning and the end."""
        if self.file < 0:
            return b""
        size = os.fstat(self.file).st_size
        length, half = size - self._taken, MAX_PIECE // 2
        if length <= MAX_PIECE:
            piece = os.pread(self.file, length, self._taken)
        else:
            cut = f"\n[{length - 2 * half} bytes left out]\n".encode()
            piece = os.pread(self.file, half, self._taken) + cut + os.pread(self.file, half, size - half)
        self._taken = size
        if size > _TRUNCATE_AT:
            os.ftruncate(self.file, 0)
            self._taken = 0
        return piece

    def close(self) -> None:
        """May be called again."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class OutputLog:
    """Gathers the output of all workers of a pool: in memory until a file is named. Both are bounded."""

    def __init__(self) -> None:
        self._early = b""
        self._path: Path | None = None
        self._written = 0

    def open(self, path: Path) -> None:
        """Append to `path` from now on, beginning with what was gathered so far; made at the first output."""
        self._path = path
        early, self._early = self._early, b""
        self.write(early)

    def write(self, piece: bytes) -> None:
        """Append a piece. Beyond `MAX_FILE` bytes (`MAX_PIECE` before `open`) nothing more is kept.

        A file that cannot be written, as on a full disk, is given up: output is not worth a run.
        """
        if not piece:
            return
        if self._path is None:
            self._early = (self._early + piece)[:MAX_PIECE]
            return
        if self._written >= MAX_FILE:
            return
        self._written += len(piece)
        end = b"" if self._written < MAX_FILE else b"\n[further output is left out]\n"
        try:
            with self._path.open("ab") as file:
                file.write(piece + end)
        except OSError:
            self._written = MAX_FILE


def last_line(output: bytes) -> str:
    """What a process that died said last: the line where Python's fault handler saw it, or else its last line."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    fault = next((number for number, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    if fault is not None:
        places = [line for line in lines[fault:] if line.startswith("File ")]
        return f"{lines[fault]}, {places[0]}"[:_MAX_LINE] if places else lines[fault][:_MAX_LINE]
    return lines[-1][:_MAX_LINE] if lines else ""
