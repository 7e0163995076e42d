"""Clipping and AdamW in one pass over gradients, masters and moments.

Invariant: the update is that of Megatron's optimizer: the same norm over all ranks, the same clipping factor, the same
AdamW. torch's fused kernel divides each gradient by `grad_scale` as it reads it; that is where clipping happens, so the
gradients are read once for the norm and once for the update.
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
def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """The norm of the gradients over all ranks, after `prepare_grads`; one host synchronisation.

    A collective of the ranks that Megatron's own norm is one of.
    """
    device = torch.cuda.current_device()
    squares: dict[object, Tensor] = {}
    for part in _all_parts(optimizer):
        total = squares.setdefault(part.get_grad_stats_parallel_group(), torch.zeros((), device=device))
        gradients = [gradient.detach() for gradient in part.get_grads_for_grad_norm()]
        if gradients:
            total += torch.stack(torch._foreach_norm(gradients)).square().sum()
    for group, total in squares.items():
        torch.distributed.all_reduce(total, group=group)
    return float(torch.stack(list(squares.values())).sum().sqrt())


@torch.no_grad()
def clip_and_update(optimizer: MegatronOptimizer, norm: float, max_norm: float) -> None:
    """One AdamW step with gradients scaled down to a norm of at most `max_norm` (0: not at all)."""
    factor = max_norm / (norm + _NORM_EPS) if max_norm > 0 else 1.0
    device = torch.cuda.current_device()
    for part in _parts(optimizer):
        inner = part.optimizer
        # torch.optim reads these two, which torch's gradient scaler sets.
        inner.grad_scale = inner.found_inf = None
        if factor < 1:
            inner.grad_scale = torch.full((), 1 / factor, device=device)
            inner.found_inf = torch.zeros((), device=device)
    optimizer.step_with_ready_grads()


def _all_parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]


def _parts(optimizer: MegatronOptimizer) -> Iterator[MegatronOptimizer]:
    """Those that hold parameters on this rank."""
    return (part for part in _all_parts(optimizer) if not getattr(part, "is_stub_optimizer", False))
