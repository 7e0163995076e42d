"""Files of blocks: what each rank holds of the tensors of a model, read again by ranks that hold other parts.

A file is a valid safetensors file (https://huggingface.co/docs/safetensors). Its keys are `kind/name@offsets`, as
`exp_avg/model.norm.weight@0`; its metadata has the shapes of the whole tensors. Invariant: a tensor is read only where
the files hold each of its elements that are asked for exactly once; everything else is refused by name.
"""

import errno
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pentad.errors import UserError
from pentad.weights.blocks import Block, Shape, whole_block
from pentad.weights.hf_files import TensorReader
from pentad.weights.safetensors_writer import DTYPES, Entry, FileRecord, write_safetensors

WEIGHT = "weight"
"""The kind of tensor that `BlockReader.get` gives."""

_FORMAT = {"pentad": "blocks-1"}
# As safetensors itself allows.
_MOST_HEADER_BYTES = 100_000_000
_DAMAGED = "restore the file from a copy, or go on from another checkpoint"


class WriteError(UserError):
    """A file could not be written.

    Attributes:
        errno: of the operating system, see the module `errno`; 0 if unknown.
    """

    def __init__(self, cause: str, fix: str = "", errno: int = 0) -> None:
        super().__init__(cause, fix)
        self.errno = errno

    @classmethod
    def of(cls, error: OSError, path: Path) -> "WriteError":
        """That error, with this machine's name and the file."""
        found = cls("", "", error.errno or 0)
        fix = "free space there" if found.is_full else "check its permissions and the file system"
        reason = error.strerror or str(error)
        return cls(f"cannot write {path} on machine {socket.gethostname()}: {reason}", fix, found.errno)

    @property
    def is_full(self) -> bool:
        """Whether there was no space left: of the file system, of a quota, or for a file of that size."""
        return self.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def rank_file(rank: int) -> str:
    """The name of the file that a rank writes."""
    return f"rank-{rank:05d}.safetensors"


def write_blocks(
    path: Path, items: Iterable[tuple[str, Block, Tensor]], progress: Callable[[int], None] | None = None
) -> FileRecord:
    """Write blocks to a file, and the file to the disk.

    Args:
        items: kind, rectangle, and its elements: a contiguous CPU tensor of any shape, which is not copied.
        progress: called with the number of bytes written so far.

    Raises:
        OSError: as it comes; part of the file may be there.
        ValueError: a tensor has not the elements of its block, or two blocks have the same key.
    """
    items = list(items)
    for _, block, tensor in items:
        if tensor.numel() != block.elements:
            raise ValueError(f"{tensor.numel()} elements for {block}")
    entries = [(kind, block, tensor.dtype) for kind, block, tensor in items]
    return stream_blocks(path, entries, (tensor for _, _, tensor in items), progress)


def stream_blocks(
    path: Path,
    entries: Iterable[tuple[str, Block, torch.dtype]],
    pieces: Iterable[Tensor],
    progress: Callable[[int], None] | None = None,
) -> FileRecord:
    """The same with elements that are read while the file is written.

    Args:
        entries: kind, rectangle and dtype.
        pieces: the elements of all of them in order; see `write_safetensors`.

    Raises:
        OSError, ValueError: as `write_blocks`.
    """
    shapes: dict[str, Shape] = {}
    listed = []
    for kind, block, dtype in entries:
        if shapes.setdefault(block.name, block.shape) != block.shape:
            raise ValueError(f"a tensor of shape {list(shapes[block.name])} for {block}")
        key = f"{kind}/{block.name}@{','.join(map(str, block.offsets))}"
        listed.append(Entry(key, dtype, block.sizes))
    return write_safetensors(path, {**_FORMAT, "shapes": json.dumps(shapes)}, listed, pieces, progress)


@dataclass(frozen=True)
class _Stored:
    """A rectangle in a file; `begin` is where its bytes are."""

    path: Path
    dtype: torch.dtype
    offsets: Shape
    sizes: Shape
    begin: int


class BlockReader(TensorReader):
    """The tensors in all files of a directory, whichever ranks wrote them.

    Only the headers are read at first; `read` maps files into memory and copies what is asked for.

    Raises:
        UserError: there is no file, or a file is damaged, not of this kind, or contradicts another.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shapes: dict[str, Shape] = {}
        self._stored: dict[tuple[str, str], list[_Stored]] = {}
        self._maps: dict[Path, np.ndarray] = {}
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise UserError(f"{directory} holds no *.safetensors file", _DAMAGED)
        for path in files:
            try:
                self._take(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"cannot read {path}: {error}", _DAMAGED) from None

    def _take(self, path: Path) -> None:
        """Take the header of a file in; any error means that the file is damaged."""
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
                raise ValueError(f"it has {size} bytes, and its header would have {length}")
            entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        if {name: metadata.get(name) for name in _FORMAT} != _FORMAT:
            raise ValueError("it is no file of a checkpoint")
        for name, shape in json.loads(metadata["shapes"]).items():
            if self._shapes.setdefault(name, tuple(shape)) != tuple(shape):
                raise ValueError(f"{name} has shape {shape}, in another file {list(self._shapes[name])}")
        end = 0
        for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            kind, _, name_and_offsets = key.partition("/")
            name, _, offsets = name_and_offsets.rpartition("@")
            stored = _Stored(
                path,
                DTYPES[entry["dtype"]],
                tuple(int(offset) for offset in offsets.split(",")),
                tuple(entry["shape"]),
                8 + length + end,
            )
            self._check_bounds(name, stored)
            start, end_of_this = entry["data_offsets"]
            if start != end or end_of_this - start != np.prod(stored.sizes) * stored.dtype.itemsize:
                raise ValueError(f"the place of {key} is not where its header says")
            end = end_of_this
            self._stored.setdefault((kind, name), []).append(stored)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes instead of {8 + length + end}")

    def _check_bounds(self, name: str, stored: _Stored) -> None:
        ends = [at + size for at, size in zip(stored.offsets, stored.sizes, strict=True)]
        shape = self._shapes[name]
        if len(shape) != len(ends) or any(end > size for end, size in zip(ends, shape, strict=True)):
            raise ValueError(f"a part of {name} is outside of its shape {list(shape)}")

    def names(self, kind: str = WEIGHT) -> list[str]:
        """The tensors of a kind."""
        return [name for held, name in self._stored if held == kind]

    def shape(self, kind: str, name: str) -> Shape:
        """Of the whole tensor.

        Raises:
            UserError: there is no such tensor.
        """
        self._parts(kind, name)
        return self._shapes[name]

    def dtype(self, kind: str, name: str) -> torch.dtype:
        """As which the tensor is stored.

        Raises:
            UserError: there is no such tensor.
        """
        return self._parts(kind, name)[0].dtype

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every tensor of the kind `weight`, by name."""
        return {name: self._shapes[name] for name in self.names()}

    def get(self, name: str) -> Tensor:
        """One whole tensor of the kind `weight`, on the CPU, in its stored dtype.

        Raises:
            UserError: see `read`.
        """
        whole = torch.empty(self.shape(WEIGHT, name), dtype=self.dtype_of(name))
        self.read(WEIGHT, whole_block(name, tuple(whole.shape)), whole)
        return whole

    def dtype_of(self, name: str) -> torch.dtype:
        """As which a tensor of the kind `weight` is stored.

        Raises:
            UserError: there is no such tensor.
        """
        return self.dtype(WEIGHT, name)

    def part(self, block: Block) -> Tensor:
        """A rectangle of a tensor of the kind `weight`, on the CPU, in its stored dtype.

        Raises:
            UserError: see `read`.
        """
        found = torch.empty(block.sizes, dtype=self.dtype_of(block.name))
        self.read(WEIGHT, block, found)
        # The pages of a mapped file count as memory of this process.
        self._maps.clear()
        return found

    @torch.no_grad()
    def read(self, kind: str, block: Block, out: Tensor) -> None:
        """Copy a rectangle of a tensor, cast to the dtype of `out`.

        Args:
            block: which rectangle; its `start` means nothing here.
            out: of its sizes, on any device.

        Raises:
            UserError: there is no such tensor, it has another shape, or elements are missing or stored twice.
            ValueError: `out` has other sizes.
        """
        if tuple(out.shape) != block.sizes:
            raise ValueError(f"a tensor of shape {list(out.shape)} for {block}")
        parts = self._parts(kind, block.name)
        if self._shapes[block.name] != block.shape:
            raise UserError(
                f"{self.directory}: {block.name} has shape {list(self._shapes[block.name])}, the model needs "
                f"{list(block.shape)}",
                "go on with the model that the checkpoint is of",
            )
        # [parts, dimensions]: what each part has of the rectangle, in places of the whole tensor.
        offsets = np.array([part.offsets for part in parts])
        firsts = np.maximum(offsets, block.offsets)
        lasts = np.minimum(offsets + [part.sizes for part in parts], np.add(block.offsets, block.sizes))
        found = np.flatnonzero((firsts < lasts).all(axis=1))
        self._check_cover(kind, block, firsts[found], lasts[found])
        for index in found:
            first, last, part = firsts[index], lasts[index], parts[index]
            out[_slices(first - block.offsets, last - block.offsets)].copy_(
                self._tensor(part)[_slices(first - part.offsets, last - part.offsets)]
            )

    def _parts(self, kind: str, name: str) -> list[_Stored]:
        if (kind, name) not in self._stored:
            raise UserError(
                f"{self.directory} has no {kind} of {name}",
                "go on with the model that the checkpoint is of, or from another checkpoint",
            )
        return self._stored[kind, name]

    def _check_cover(self, kind: str, block: Block, firsts: np.ndarray, lasts: np.ndarray) -> None:
        """Refuse rectangles that do not hold each element of a block exactly once."""
        common = (np.maximum(firsts[:, None], firsts) < np.minimum(lasts[:, None], lasts)).all(axis=2)
        if common.sum() > len(firsts):
            raise UserError(
                f"{self.directory}: elements of the {kind} of {block.name} are stored twice",
                "keep only the files of one checkpoint in the directory",
            )
        missing = block.elements - int((lasts - firsts).prod(axis=1).sum())
        if missing:
            raise UserError(
                f"{self.directory}: {missing} of {block.elements} elements of the {kind} of {block.name} are missing",
                _DAMAGED,
            )

    def _tensor(self, part: _Stored) -> Tensor:
        """A rectangle as it lies in its file."""
        if part.path not in self._maps:
            # Copy on write: torch has no tensors that cannot be written to.
            self._maps[part.path] = np.memmap(part.path, np.uint8, "c")
        count = int(np.prod(part.sizes)) * part.dtype.itemsize
        data = np.asarray(self._maps[part.path][part.begin : part.begin + count])
        return torch.from_numpy(data).view(part.dtype).view(part.sizes)


def _slices(firsts: np.ndarray, lasts: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True))
