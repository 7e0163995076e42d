"""What one process computed, on the disk, and how far others are from it.

Invariant: a reference is complete once `numbers.json` is there. Ranks compare what they hold with it tensor by tensor,
so that only numbers travel between processes, whatever the size of the model.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

# Elements that are compared at a time, in float64.
_CHUNK = 1 << 24
# A gradient below this part of the whole one is rounding; it is measured against that instead of itself.
_NEGLIGIBLE = 1e-6


class Reference:
    """A directory with log-probs, losses, gradients and weights of one process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write_logprobs(self, step: int, logprobs: Tensor) -> None:
        """Float32 `[T]`, before an optimizer step; steps count from 1."""
        self.directory.mkdir(parents=True, exist_ok=True)
        save_file({"logprobs": logprobs.contiguous()}, self._logprobs(step))

    def write_tensors(self, kind: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """`kind` is `gradients`, of the first step, or `weights`, after the last."""
        whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors}
        save_file(whole, self.directory / f"{kind}.safetensors")

    def write_numbers(self, losses: list[float], grad_norms: list[float]) -> None:
        """One of each for every step."""
        (self.directory / "numbers.json").write_text(json.dumps({"losses": losses, "grad_norms": grad_norms}))

    def logprobs(self, step: int) -> Tensor:
        with safe_open(self._logprobs(step), framework="pt") as handle:
            return handle.get_tensor("logprobs")

    @property
    def losses(self) -> list[float]:
        return self._numbers()["losses"]

    @property
    def grad_norms(self) -> list[float]:
        return self._numbers()["grad_norms"]

    def names(self, kind: str = "gradients") -> list[str]:
        """Hugging Face names of the parameters that are trained, or (`weights`) of all."""
        with safe_open(self.directory / f"{kind}.safetensors", framework="pt") as handle:
            return list(handle.keys())

    def gradient_differences(self, gradients: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
        """Norm of the difference over norm, by name; infinite where there is no such parameter or shape."""
        floor = _NEGLIGIBLE * self.grad_norms[0]
        return self._differences("gradients", gradients, lambda one, other: relative(one, other, floor))

    def weight_differences(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
        """See `largest`, by name; infinite where there is no such parameter or shape."""
        return self._differences("weights", weights, largest)

    def _differences(
        self, kind: str, tensors: Iterable[tuple[str, Tensor]], measure: Callable[[Tensor, Tensor], float]
    ) -> dict[str, float]:
        found = {}
        with safe_open(self.directory / f"{kind}.safetensors", framework="pt") as handle:
            known = set(handle.keys())
            # Every tensor must be taken, even if nothing is known to compare it with: taking it is a collective.
            for name, tensor in tensors:
                other = handle.get_tensor(name) if name in known else None
                same = other is not None and other.shape == tensor.shape
                found[name] = measure(tensor, other.to(tensor.device)) if same else math.inf
        return found

    def _logprobs(self, step: int) -> Path:
        return self.directory / f"logprobs-{step}.safetensors"

    def _numbers(self) -> dict[str, list[float]]:
        return json.loads((self.directory / "numbers.json").read_text())


def relative(one: Tensor, other: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference over the norm of `other`, or over `floor` where that is larger."""
    difference = size = 0.0
    for left, right in zip(one.flatten().split(_CHUNK), other.flatten().split(_CHUNK), strict=True):
        left, right = left.double(), right.double()
        difference += float((left - right).square().sum())
        size += float(right.square().sum())
    scale = max(math.sqrt(size), floor)
    return math.sqrt(difference) / scale if scale else (0.0 if difference == 0 else math.inf)


def largest(one: Tensor, other: Tensor) -> float:
    """Largest difference of an element, over that of `other` where it is above 1; NaN where there is one."""
    pairs = zip(one.flatten().split(_CHUNK), other.flatten().split(_CHUNK), strict=True)
    values = [((left - right).abs() / right.abs().clamp(min=1)).max() for left, right in _as_float(pairs)]
    return float(torch.stack(values).max())


def _as_float(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for left, right in pairs:
        yield left.float(), right.float()


def relative_number(one: float, other: float) -> float:
    """Difference of two numbers over the second."""
    return abs(one - other) / abs(other) if other else (0.0 if one == other else math.inf)
