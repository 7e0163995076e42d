"""What a model computes with beside its weights, as its modules do it: epsilons, rotary angles, scales of attention.

Invariant: values are measured at live modules, or read off them, on both sides; never taken from the configuration that
both sides were made from. A small fault in them hides under the rounding of bfloat16 in log-probs, but not here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pentad.weights.proof import SyncError

# A norm is given this constant: its square is of the size of usual epsilons, so the answer depends on the epsilon.
_NORM_INPUT = 1e-3
# Rounding to bfloat16 moves a measured value by less: 0.4% of a response of a norm in one element, less in the mean;
# 0.4% of a cosine in a table that is kept in bfloat16; 0.2% where angles are float32 products of positions near 2^15.
_TOLERANCE = 0.01
_SHOWN = 3


@dataclass(frozen=True)
class ModelConstants:
    """Constants of a model, or of a part of its layers.

    Attributes:
        norms: of each norm, by the Hugging Face name of its weight: the factor by which it shrinks a constant input of
            0.001 beside its weight, `1 / sqrt(1 + epsilon / 0.001^2)`; see `norm_response`.
        rotary: by position, the cosines and then the sines of a head's elements.
        attention: by layer, the factor of the products of queries and keys.
    """

    norms: Mapping[str, float] = field(default_factory=dict)
    rotary: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    attention: Mapping[int, float] = field(default_factory=dict)

    def __or__(self, other: "ModelConstants") -> "ModelConstants":
        """Both parts of one model.

        Raises:
            SyncError: they contradict each other.
        """
        problems = _differences(self, other, "one rank", "another rank")
        if problems:
            raise SyncError(f"ranks of the trainer compute differently: {_list(problems)}")
        return ModelConstants(
            {**self.norms, **other.norms}, {**self.rotary, **other.rotary}, {**self.attention, **other.attention}
        )


@torch.no_grad()
def norm_response(norm: Callable[[Tensor], Tensor], weight: Tensor) -> float:
    """How much a norm shrinks a small constant input, beside its weight.

    Args:
        norm: computes `x / sqrt(mean(x^2) + epsilon) * weight` for `[1, n]`, in the dtype of the weight.
        weight: `[n]`.

    Returns:
        `1 / sqrt(1 + epsilon / 0.001^2)`; the least-squares factor over the elements, so that rounding averages out.
        0 where the weight is 0.
    """
    inputs = torch.full((1, len(weight)), _NORM_INPUT, dtype=weight.dtype, device=weight.device)
    answer, scale = norm(inputs)[0].double(), weight.double()
    square = float(scale.square().sum())
    return float((answer * scale).sum()) / square if square else 0.0


def rotary_constants(cos: Tensor, sin: Tensor, positions: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """`ModelConstants.rotary` from tables `[P, head_dim]` at the positions."""
    rows = torch.cat([cos, sin], dim=-1).float().tolist()
    return {position: tuple(row) for position, row in zip(positions, rows, strict=True)}


def check_constants(trainer: ModelConstants, engine: ModelConstants, name: str) -> None:
    """Compare what trainer and engine compute with.

    An engine may leave constants out: of those it is known nothing.

    Args:
        name: how the engine is called in the error.

    Raises:
        SyncError: they differ, or the engine tells of modules that the trainer does not have.
    """
    problems = [f"{what} is not part of the trainer's model" for what in sorted(_names(engine) - _names(trainer))]
    problems += _differences(trainer, engine, "the trainer", name)
    if problems:
        raise SyncError(f"{name} and the trainer compute differently with the same weights: {_list(problems)}")


def _names(constants: ModelConstants) -> set[str]:
    return {
        *constants.norms,
        *(f"rotary position {position}" for position in constants.rotary),
        *(f"attention of layer {layer}" for layer in constants.attention),
    }


def _differences(one: ModelConstants, other: ModelConstants, its_name: str, others_name: str) -> list[str]:
    problems = []
    for name in sorted(one.norms.keys() & other.norms.keys()):
        a, b = one.norms[name], other.norms[name]
        if not abs(a - b) <= _TOLERANCE:
            module = name.removesuffix(".weight")
            problems.append(f"{module} has epsilon {_epsilon(b)} in {others_name}, {_epsilon(a)} in {its_name}")
    for position in sorted(one.rotary.keys() & other.rotary.keys()):
        a, b = torch.tensor(one.rotary[position]), torch.tensor(other.rotary[position])
        if a.shape != b.shape or not bool(((a - b).abs() <= _TOLERANCE).all()):
            problems.append(f"the rotary angles at position {position} differ (base, scaling or head width)")
    for layer in sorted(one.attention.keys() & other.attention.keys()):
        a, b = one.attention[layer], other.attention[layer]
        if not abs(a - b) <= _TOLERANCE * abs(a):
            problems.append(f"attention of layer {layer} has scale {b:.4g} in {others_name}, {a:.4g} in {its_name}")
    return problems


def _epsilon(response: float) -> str:
    """The epsilon that a response tells of."""
    return f"{_NORM_INPUT**2 * (1 / response**2 - 1):.2g}" if response > 0 else "unknown"


def _list(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
