"""The adapters of one vLLM worker: taken from the trainer, and compared with what its layers then compute with.

Invariant: `problems` is empty only where the buffers of every layer hold, bit for bit, the worker's part of what the
trainer sent, and zeros elsewhere.

vLLM loads adapters from files. B is written with the scale in it (in float32, rounded once), and the file says that the
scale is 1: vLLM would round its product in the model's dtype.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pentad.families.lora import A, B
from pentad.weights.adapters import write_adapter
from pentad.weights.checksum import BIT_VIEWS, checksum


@dataclass(frozen=True)
class AdapterOrder:
    """Adapters that belong to a publication.

    Attributes:
        rank, scale: of the adapters.
        shapes: of each matrix, by Hugging Face name.
        folder: where the first worker writes them; it exists.
    """

    rank: int
    scale: float
    shapes: Mapping[str, tuple[int, ...]]
    folder: Path


@dataclass
class TakenAdapters:
    """The adapters of one publication, as they arrived.

    Attributes:
        order: what has to arrive.
        tensors: by name, on the CPU, in the dtype that they were sent in.
    """

    order: AdapterOrder
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def take(self, name: str, tensor: Tensor) -> None:
        """Keep a copy."""
        self.tensors[name] = tensor.to("cpu", copy=True)

    def checksums(self) -> dict[str, int]:
        """Of what was taken, by name."""
        return {name: checksum(tensor) for name, tensor in self.tensors.items()}

    def write(self) -> None:
        """Write what was taken for vLLM, as PEFT does, with the scale in B."""
        config = {
            "peft_type": "LORA",
            "r": self.order.rank,
            "lora_alpha": self.order.rank,
            "target_modules": sorted(name.removesuffix(A) for name in self.tensors if name.endswith(A)),
            "bias": "none",
        }
        matrices = [(name, wanted) for name in self.tensors if (wanted := self._wanted(name)) is not None]
        write_adapter(matrices, self.order.folder, config)

    def problems(self, manager: Any, number: int) -> list[str]:
        """What is wrong with the adapters that this worker computes with, by Hugging Face name; empty if nothing is.

        Args:
            manager: vLLM's `LoRAModelManager` of the worker's model.
            number: of the adapters, in vLLM's requests.
        """
        if number not in manager.lora_index_to_id:
            return [f"adapter {number} is not in use"]
        slot, found, seen = manager.lora_index_to_id.index(number), [], set()
        for modules, layer in adapted_layers(manager):
            for name, a, b in zip(modules, layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
                for matrix, held, split in ((name + A, a, 1), (name + B, b, 0)):
                    seen.add(matrix)
                    if not _holds(held[slot, 0], self._wanted(matrix), split, layer.tp_rank, layer.tp_size):
                        found.append(f"{matrix} is not what was sent in the engine's buffers")
        return found + [f"{name} is not held" for name in self.order.shapes if name not in seen]

    def _wanted(self, name: str) -> Tensor | None:
        """The whole matrix as vLLM is to hold it; None where the module has no adapter."""
        tensor = self.tensors.get(name)
        if tensor is None or name.endswith(A):
            return tensor
        return (tensor.float() * self.order.scale).to(tensor.dtype)


def adapted_layers(manager: Any) -> Iterator[tuple[list[str], Any]]:
    """vLLM's layers with room for adapters, each with the modules that it computes, in their order."""
    for name, layer in manager.modules.items():
        yield list(manager.packed_modules.get(name, [name])), layer


class LoaderNames:
    """What a model's loader calls the tensors of a checkpoint: those of layers with adapters have another name.

    Args:
        model: vLLM's.
    """

    def __init__(self, model: Any) -> None:
        manager = getattr(model, "lora_manager", None)
        layers = adapted_layers(manager) if manager is not None else ()
        self._inside = {module for modules, _ in layers for module in modules}

    def of(self, name: str) -> str:
        """The loader's name of a tensor."""
        module, _, last = name.rpartition(".")
        return f"{module}.base_layer.{last}" if module in self._inside else name


def _holds(held: Tensor, wanted: Tensor | None, split: int, rank: int, ranks: int) -> bool:
    """Whether a buffer holds a worker's part of a matrix, and zeros elsewhere.

    Args:
        held: of one matrix, at least as large as the part.
        wanted: the whole matrix; None: there is none.
        split: along which dimension workers share the matrix, if they do.
        rank, ranks: place of the worker. Where there are fewer parts than workers, neighbours hold the same.
    """
    if wanted is None:
        return not held.any()
    size = held.shape[split]
    parts = wanted.shape[split] // size
    if parts * size != wanted.shape[split]:
        return False
    mine = wanted.narrow(split, rank * parts // ranks * size, size).to(held.device, held.dtype)
    inner = held[: mine.shape[0], : mine.shape[1]]
    rest = (held[mine.shape[0] :], held[:, mine.shape[1] :])
    return torch.equal(_bits(inner), _bits(mine)) and not any(bool(part.any()) for part in rest)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(BIT_VIEWS[tensor.element_size()])
