"""Writing safetensors files (https://huggingface.co/docs/safetensors) of any size with little memory.

Invariant: a file holds its entries in the order given, one behind the other; tensors are read while the file is
written, so only the piece that is written is in memory. The digest is that of the bytes that were written.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What the format calls the dtypes that weights may have."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class FileRecord:
    """What was written: the file's name, its size, and the SHA-256 of its bytes in hexadecimal digits."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A tensor of a file, by its key."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of its elements."""
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path,
    metadata: Mapping[str, str],
    entries: Sequence[Entry],
    pieces: Iterable[Tensor],
    progress: Callable[[int], None] | None = None,
) -> FileRecord:
    """Write a file, and the file to the disk.

    Args:
        metadata: of the file.
        entries: what it holds, in order.
        pieces: the elements of all entries, one after the other: contiguous CPU tensors of any shape, not copied. A
            piece may be a part of an entry.
        progress: called with the number of bytes written so far.

    Raises:
        OSError: as it comes; part of the file may be there.
        ValueError: the pieces have not the bytes of the entries.
    """
    head = _header(metadata, entries)
    expected = len(head) + sum(entry.bytes for entry in entries)
    digest, written = sha256(), 0
    # Each chunk is read for its digest while it is written.
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:
        for part in _parts(head, pieces):
            for start in range(0, len(part), _CHUNK_BYTES):
                chunk = part[start : start + _CHUNK_BYTES]
                hashed = hasher.submit(digest.update, chunk)
                while len(chunk):
                    count = file.write(chunk)
                    written += count
                    chunk = chunk[count:]
                hashed.result()
                if progress is not None:
                    progress(written)
        if written != expected:
            raise ValueError(f"{path} has {written} bytes instead of {expected}")
        os.fsync(file.fileno())
    return FileRecord(path.name, written, digest.hexdigest())


def _header(metadata: Mapping[str, str], entries: Sequence[Entry]) -> memoryview:
    content: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in entries:
        start, end = end, end + entry.bytes
        if entry.key in content:
            raise ValueError(f"{entry.key} is written twice")
        name = DTYPE_NAMES[entry.dtype]
        content[entry.key] = {"dtype": name, "shape": entry.shape, "data_offsets": (start, end)}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _parts(head: memoryview, pieces: Iterable[Tensor]) -> Iterable[memoryview]:
    yield head
    for piece in pieces:
        if not piece.is_contiguous() or piece.device.type != "cpu":
            raise ValueError("files are written from contiguous CPU tensors")
        yield memoryview(piece.detach().view(-1).view(torch.uint8).numpy())
