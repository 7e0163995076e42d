"""The float32 masters that Megatron's optimizers hold on one rank, and Adam's state of each.

Invariant: every parameter of the rank is found in exactly one master, or, where data-parallel ranks share masters out,
in at most one; an optimizer that holds anything else is refused.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, Float16OptimizerWithFloat16Params, FP32Optimizer
from torch import Tensor

from pentad.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by torch's names."""

_KNOWN = (DistributedOptimizer, Float16OptimizerWithFloat16Params, FP32Optimizer)


@dataclass(frozen=True)
class Master:
    """A run of a parameter whose float32 master and moments this rank holds.

    Attributes:
        name: Megatron's, in the whole model.
        parameter: the whole local parameter.
        start: index of the run's first element in the parameter, row-major.
        tensor: float32, contiguous, as the optimizer holds it; in float32 it is the parameter's own memory.
        optimizer: torch's, which holds the moments under that tensor.
        is_shared_out: data-parallel ranks hold other runs; otherwise each holds a copy of the same.
    """

    name: str
    parameter: torch.nn.Parameter
    start: int
    tensor: Tensor
    optimizer: torch.optim.Optimizer
    is_shared_out: bool

    @property
    def stop(self) -> int:
        """Index of the element of the parameter that follows the run."""
        return self.start + self.tensor.numel()

    @property
    def state(self) -> dict[str, Tensor]:
        """Adam's `step`, `exp_avg` and `exp_avg_sq`; empty before the first update."""
        return self.optimizer.state.get(self.tensor, {})

    def forget_state(self) -> None:
        """Have it as before the first update."""
        self.optimizer.state.pop(self.tensor, None)

    def make_state(self, updates: int) -> dict[str, Tensor]:
        """The state after a number of updates, as torch makes it; the moments are to be filled."""
        group = next(
            group for group in self.optimizer.param_groups if any(one is self.tensor for one in group["params"])
        )
        on_device = group["fused"] or group["capturable"]
        state = self.optimizer.state[self.tensor]
        if not state:
            step_device = self.tensor.device if on_device else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=step_device)
            state |= {kind: torch.zeros_like(self.tensor, requires_grad=False) for kind in MOMENTS}
        state["step"].fill_(updates)
        return state


def check_savable(optimizer: MegatronOptimizer) -> None:
    """Refuse an optimizer with state that masters and Adam's two moments do not hold.

    Raises:
        UserError: it has such state.
    """
    for part in _parts(optimizer):
        inner = part.optimizer
        problem = None
        if type(part) not in _KNOWN:
            problem = f"Megatron's {type(part).__name__}"
        elif type(inner) not in (torch.optim.Adam, torch.optim.AdamW) or any(
            group["amsgrad"] for group in inner.param_groups
        ):
            problem = f"the optimizer {type(inner).__name__}"
        elif part.config.use_precision_aware_optimizer or getattr(part, "grad_scaler", None) is not None:
            problem = "a precision-aware optimizer or a gradient scaler"
        if problem:
            raise UserError(f"checkpoints cannot hold the state of {problem}", "change megatron.optimizer")


def masters_of(optimizer: MegatronOptimizer, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> Iterator[Master]:
    """All masters of this rank.

    Args:
        parameters: the rank's, under their Megatron names in the whole model.
    """
    names = {parameter: name for name, parameter in parameters}
    for part in _parts(optimizer):
        for parameter, tensor, start in _runs(part):
            is_shared_out = isinstance(part, DistributedOptimizer)
            yield Master(names[parameter], parameter, start, tensor, part.optimizer, is_shared_out)


def _runs(part: MegatronOptimizer) -> Iterator[tuple[torch.nn.Parameter, Tensor, int]]:
    """Parameter, master, and where the master begins in the parameter."""
    if isinstance(part, FP32Optimizer):
        for group in part.optimizer.param_groups:
            yield from ((parameter, parameter, 0) for parameter in group["params"])
    elif isinstance(part, DistributedOptimizer):
        ranges = _ranges(part)
        for parameters, masters in (
            (part.model_fp32_groups, part.shard_fp32_groups),
            (part.model_float16_groups, part.shard_fp32_from_float16_groups),
        ):
            for parameter, master in _pairs(parameters, masters):
                held = ranges[parameter]
                if held.size != master.numel():
                    raise RuntimeError(f"a master of {master.numel()} elements for a range of {held.size}")
                yield parameter, master, held.start
    else:
        for parameter, master in _pairs(part.float16_groups, part.fp32_from_float16_groups):
            yield parameter, master, 0
        for group in part.fp32_from_fp32_groups:
            yield from ((parameter, parameter, 0) for parameter in group)


def _ranges(part: DistributedOptimizer) -> dict[torch.nn.Parameter, Any]:
    """Which run of each parameter this rank holds: Megatron's `Range`, with `start`, `end` and `size`."""
    return {
        parameter: ranges["param"]
        for of_buffer in part.gbuf_ranges
        for of_buckets in of_buffer.values()
        for of_bucket in of_buckets
        for parameter, ranges in of_bucket["param_map"].items()
    }


def _pairs(one: list[list[Any]], other: list[list[Any]]) -> Iterator[tuple[Any, Any]]:
    for left, right in zip(one, other, strict=True):
        yield from zip(left, right, strict=True)


def _parts(optimizer: MegatronOptimizer) -> Iterator[MegatronOptimizer]:
    """Those that hold parameters on this rank."""
    parts = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return (part for part in parts if not getattr(part, "is_stub_optimizer", False))
