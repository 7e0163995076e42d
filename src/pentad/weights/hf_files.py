"""Reading and writing Hugging Face checkpoints tensor by tensor.

Invariant: a checkpoint is complete and of the right shapes before its first tensor is used; an export appears under
its final name only when all of it is on the disk; no more than one shard is in memory.
"""

import json
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pentad.errors import UserError
from pentad.weights.blocks import Block
from pentad.weights.safetensors_writer import DTYPES

_INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 << 30
"""Most bytes of a file of weights, but for a larger tensor."""


class TensorSource(Protocol):
    """Where whole tensors come from, by their Hugging Face names."""

    def get(self, name: str) -> Tensor:
        """One whole tensor, on the CPU."""
        ...


class TensorReader:
    """Base of readers of whole tensors by their Hugging Face names.

    Attributes:
        directory: which they are in.
    """

    directory: Path

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        raise NotImplementedError

    def get(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, in its stored dtype."""
        raise NotImplementedError

    def dtype_of(self, name: str) -> torch.dtype:
        """As which a tensor is stored.

        Raises:
            UserError: in a format that is no floating-point number of 16 bits or more.
        """
        raise NotImplementedError

    def part(self, block: Block) -> Tensor:
        """A rectangle of a tensor, on the CPU, in its stored dtype. Only that much memory is used when this returns.

        Args:
            block: which rectangle; its `start` means nothing here.
        """
        raise NotImplementedError

    def check(self, expected: Mapping[str, tuple[int, ...]], *, tied: bool) -> None:
        """Compare with the tensors that a model needs.

        Args:
            expected: shape by name.
            tied: the output layer is the embedding; a stored copy is accepted where it is equal.

        Raises:
            UserError: a tensor is missing, unexpected or misshapen; each kind is named.
        """
        shapes = self.shapes
        present = {name for name in shapes if not name.endswith("rotary_emb.inv_freq")}
        if tied and "lm_head.weight" in present and "lm_head.weight" not in expected:
            if not torch.equal(self.get("lm_head.weight"), self.get("model.embed_tokens.weight")):
                raise UserError(
                    f"{self.directory}: config.json ties the output layer to the embedding, but the checkpoint has a "
                    "different lm_head.weight",
                    "set tie_word_embeddings to false in config.json, or remove lm_head.weight",
                )
            present.discard("lm_head.weight")
        problems = [f"missing tensor {name}" for name in sorted(set(expected) - present)]
        problems += [f"unexpected tensor {name}" for name in sorted(present - set(expected))]
        problems += [
            f"tensor {name} has shape {list(shapes[name])}, expected {list(expected[name])}"
            for name in sorted(present & set(expected))
            if shapes[name] != tuple(expected[name])
        ]
        if problems:
            more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise UserError(
                f"{self.directory} does not match its config.json:\n  " + "\n  ".join(problems[:8]) + more,
                "check that model.path is complete and that config.json belongs to these weights",
            )


class CheckpointReader(TensorReader):
    """The tensors of a directory with `*.safetensors` files.

    Raises:
        UserError: the directory holds no such file, or a file cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        files = self._files()
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 - not a dict
                        self._file_of[name] = path
                        found = handle.get_slice(name)
                        self._shapes[name] = tuple(found.get_shape())
                        self._dtypes[name] = found.get_dtype()
            except (SafetensorError, OSError) as error:
                raise UserError(f"cannot read {path}: {error}", "download or copy the file again") from None

    def _files(self) -> list[Path]:
        index = self.directory / _INDEX
        if index.is_file():
            names = _shards_of(index)
            missing = [name for name in names if not (self.directory / name).is_file()]
            if missing:
                raise UserError(
                    f"{self.directory} lacks {missing[0]}, which {_INDEX} names ({len(missing)} of {len(names)} files)",
                    "download the missing files",
                )
            return [self.directory / name for name in names]
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"{self.directory} holds no *.safetensors file",
                "point model.path at a directory with safetensors weights (or at a .gguf file)",
            )
        return files

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return self._shapes

    def get(self, name: str) -> Tensor:
        """One whole tensor, on the CPU, in its stored dtype."""
        with safe_open(self._file_of[name], framework="pt") as handle:
            return handle.get_tensor(name)

    def dtype_of(self, name: str) -> torch.dtype:
        """As which a tensor is stored.

        Raises:
            UserError: in a format that is no floating-point number of 16 bits or more.
        """
        if self._dtypes[name] not in DTYPES:
            raise UserError(
                f"{self._file_of[name]}: {name} is stored as {self._dtypes[name]}",
                f"use a model that is stored as {', '.join(DTYPES)}",
            )
        return DTYPES[self._dtypes[name]]

    def part(self, block: Block) -> Tensor:
        """A rectangle of a tensor, on the CPU, in its stored dtype."""
        places = tuple(slice(at, at + size) for at, size in zip(block.offsets, block.sizes, strict=True))
        with safe_open(self._file_of[block.name], framework="pt") as handle:
            return handle.get_slice(block.name)[places].contiguous()


def _shards_of(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {index}: {error!r}", "download or copy the file again") from None


def write_checkpoint(
    tensors: Iterable[tuple[str, Tensor]],
    target: Path,
    companions: Iterable[Path],
    config_json: str,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a Hugging Face model directory, complete or not at all.

    Args:
        tensors: name and tensor, streamed.
        target: the directory; must not exist yet.
        companions: files to copy beside the weights (tokenizer, generation settings).
        config_json: text of config.json.
        shard_bytes: a file of weights is closed before it would pass this.

    Raises:
        UserError: the target exists, or cannot be written.
    """
    with new_model(target, companions, config_json) as model:
        model.weight_map = _write_shards(tensors, model.directory, shard_bytes)


@dataclass
class NewModel:
    """A model directory that is being written.

    Attributes:
        directory: for the files of weights; it is renamed when it is complete.
        weight_map: file of each tensor, to be set.
    """

    directory: Path
    weight_map: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def new_model(target: Path, companions: Iterable[Path], config_json: str) -> Generator[NewModel]:
    """A directory to write weights to, which becomes the model when the block ends.

    Args:
        target, companions, config_json: as `write_checkpoint`.

    Raises:
        UserError: the target exists, or cannot be written.
    """
    if target.exists():
        raise UserError(f"{target} exists already", "choose another directory, or move it away")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield (model := NewModel(partial))
        if len(set(model.weight_map.values())) > 1:
            (partial / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": model.weight_map}, indent=1))
        (partial / "config.json").write_text(config_json)
        for path in companions:
            shutil.copy(path, partial / path.name)
        partial.rename(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Lost connections are the source's, whose tensors may come from other ranks.
        if isinstance(error, OSError | SafetensorError) and not isinstance(error, ConnectionError | TimeoutError):
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"cannot write the model to {target}: {reason}", "free space there, or check its permissions"
            ) from None
        raise


def shard_name(number: int, count: int) -> str:
    """The name of a file of weights, counted from 0, as transformers writes them."""
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _write_shards(tensors: Iterable[tuple[str, Tensor]], directory: Path, shard_bytes: int) -> dict[str, str]:
    """Write shards under provisional names, then rename them `model-0000i-of-0000n`."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        if held:
            shard = directory / f"shard-{len(shards)}"
            save_file(held, shard, metadata={"format": "pt"})
            # safetensors makes files that only their owner may read; whoever may read the directory may read this.
            shard.chmod(directory.stat().st_mode & 0o666)
            shards.append(list(held))
            held.clear()

    size = 0
    for name, tensor in tensors:
        if size and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    flush()
    weight_map = {}
    for number, names in enumerate(shards):
        file = shard_name(number, len(shards))
        (directory / f"shard-{number}").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    return weight_map
