"""Clipping and AdamW in one pass over gradients, masters and moments.

Invariant: the update is that of Megatron's optimizer: the same norm over all ranks, the same clipping factor, the same
AdamW. torch's fused kernel divides each gradient by `grad_scale` as it reads it; that is where clipping happens, so the
gradients are read once for the norm and once for the update. A norm that is not finite stops the update on the device.
"""

from collections.abc import Iterator

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer
from torch import Tensor

# Megatron adds this to the norm before it divides by it.
_NORM_EPS = 1e-6


def use_fused_adamw(optimizer: MegatronOptimizer) -> None:
    """Have torch's optimizers inside use their fused kernel."""
    for part in _parts(optimizer):
        for group in part.optimizer.param_groups:
            group["fused"], group["foreach"] = True, False


@torch.no_grad()
def fused_clip_and_update(optimizer: MegatronOptimizer, max_norm: float) -> float:
    """One AdamW step with gradients scaled down to a norm of at most `max_norm` (0: not at all).

    A collective of the ranks that Megatron's own norm is one of. The host waits once, after all work is under way.

    Returns:
        The norm of the gradients over all ranks; if it is not finite, nothing was updated.
    """
    norm = _gradient_norm(optimizer)
    # What torch's gradient scaler sets and torch.optim reads: the divisor of gradients, and 1 to update nothing.
    scale = ((norm + _NORM_EPS) / max_norm).clamp(min=1.0) if max_norm > 0 else torch.ones_like(norm)
    found_inf = (~norm.isfinite()).float()
    for part in _parts(optimizer):
        part.optimizer.grad_scale, part.optimizer.found_inf = scale, found_inf
    optimizer.step_with_ready_grads()
    return float(norm)


def _gradient_norm(optimizer: MegatronOptimizer) -> Tensor:
    device = torch.cuda.current_device()
    squares: dict[object, Tensor] = {}
    for part in _all_parts(optimizer):
        total = squares.setdefault(part.get_grad_stats_parallel_group(), torch.zeros((), device=device))
        gradients = [gradient.detach() for gradient in part.get_grads_for_grad_norm()]
        if gradients:
            total += torch.stack(torch._foreach_norm(gradients)).square().sum()
    for group, total in squares.items():
        torch.distributed.all_reduce(total, group=group)
    return torch.stack(list(squares.values())).sum().sqrt()


def _all_parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def _parts(optimizer: MegatronOptimizer) -> Iterator[MegatronOptimizer]:
    """Those that hold parameters on this rank."""
    return (part for part in _all_parts(optimizer) if not getattr(part, "is_stub_optimizer", False))
