"""What a model's own loader does with the tensors that it is given, seen copy by copy.

Invariant: where `problems` is empty, every element of every parameter was copied from one element of one tensor that
was sent, or filled with a constant; anything else is told with the name of the parameter.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pentad.weights.slices import Slice, interval_problem, runs_of

_FILLS = (torch.ops.aten.fill_.Scalar, torch.ops.aten.fill_.Tensor, torch.ops.aten.zero_.default)


@dataclass(frozen=True)
class RecordedSlice:
    """A part of the tensor `name`, and the memory that holds it from now on."""

    name: str
    part: Slice
    memory: Tensor


@dataclass(frozen=True)
class RecordedFill:
    """Memory that holds a constant, such as the rows that pad a vocabulary."""

    memory: Tensor
    value: float


@dataclass(frozen=True)
class _Source:
    name: str
    first: int
    end: int
    tensor: Tensor


class CopyRecorder(TorchDispatchMode):
    """Inside it, copies from the announced tensors are recorded.

    Args:
        parameters: of the model, by name; one that is tied to another may be listed twice.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.slices: list[RecordedSlice] = []
        self._parameters = {name: parameter.data for name, parameter in parameters}
        self._sources: list[_Source] = []
        self._starts: list[int] = []
        self.fills: list[RecordedFill] = []
        self._strange: list[tuple[Tensor, str]] = []

    def announce(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """The contiguous tensors that are sent next; those announced before are gone."""
        sources = [
            _Source(name, tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size(), tensor)
            for name, tensor in tensors
        ]
        self._sources = sorted(sources, key=lambda source: source.first)
        self._starts = [source.first for source in self._sources]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            self._copied(args[0], args[1])
        elif func in _FILLS:
            self.fills.append(RecordedFill(args[0].detach(), float(args[1]) if len(args) > 1 else 0.0))
        return result

    def _copied(self, target: Tensor, origin: Tensor) -> None:
        source = self._find(origin)
        if source is None:
            self._strange.append((target.detach(), "something that is not a part of a tensor that was sent"))
        elif origin.dtype != target.dtype:
            self._strange.append((target.detach(), f"{source.name} cast from {origin.dtype} to {target.dtype}"))
        else:
            shown = origin.expand(target.shape)
            offset = (origin.data_ptr() - source.first) // origin.element_size()
            part = Slice(offset, tuple(target.shape), tuple(shown.stride()))
            self.slices.append(RecordedSlice(source.name, part, target.detach()))

    def _find(self, origin: Tensor) -> _Source | None:
        place = bisect_right(self._starts, origin.data_ptr()) - 1
        if place < 0 or origin.data_ptr() >= self._sources[place].end:
            return None
        source = self._sources[place]
        return source if origin.device == source.tensor.device and origin.dtype == source.tensor.dtype else None

    def problems(self) -> list[str]:
        """What is wrong with the parameters, each with its name; empty where all is right."""
        names = sorted(self._parameters, key=lambda name: self._parameters[name].data_ptr())
        starts = [self._parameters[name].data_ptr() for name in names]

        def owner(view: Tensor) -> str | None:
            place = bisect_right(starts, view.data_ptr()) - 1
            return names[place] if place >= 0 and _inside(view, self._parameters[names[place]]) else None

        strange = {owner(target): origin for target, origin in self._strange}
        written: dict[str | None, list[Tensor]] = {}
        copied = {owner(record.memory) for record in self.slices}
        for view in [record.memory for record in [*self.slices, *self.fills]]:
            written.setdefault(owner(view), []).append(view)
        found = []
        for name, parameter in self._parameters.items():
            if name in strange:
                found.append(f"{name} was written from {strange[name]}")
            elif name not in copied:
                found.append(f"{name} was not written")
            elif problem := interval_problem(parameter.numel(), _intervals(written[name], parameter)):
                found.append(f"{name}: {problem.replace('held', 'written')}")
        return found


def _inside(view: Tensor, parameter: Tensor) -> bool:
    begin = parameter.data_ptr()
    return view.numel() > 0 and begin <= view.data_ptr() < begin + parameter.numel() * parameter.element_size()


def _intervals(views: list[Tensor], parameter: Tensor) -> np.ndarray:
    """Elements of the parameter's memory that the views cover, int64 `[2, R]`."""
    parts = []
    for view in views:
        offset = (view.data_ptr() - parameter.data_ptr()) // parameter.element_size()
        runs = runs_of(Slice(offset, tuple(view.shape), tuple(view.stride())), view.stride())
        parts.append(np.stack([runs.starts, runs.starts + runs.length]))
    return np.concatenate(parts, axis=1)
