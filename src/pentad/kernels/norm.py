"""Root-mean-square normalisation (https://arxiv.org/abs/1910.07467), in one pass each way.

Invariant: arithmetic is float32 whatever the operands are; the result is rounded once. The gradient of the weight is
summed over tokens in a fixed order.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Rows that one program of the backward pass takes, and the widest row that it holds.
_ROWS = 16
_WIDEST = 8192


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `rms_norm`."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, by Triton.

    Args:
        x: `[..., n]`.
        weight: `[n]`.

    Returns:
        `[..., n]`, contiguous, in x's dtype.
    """
    if x.shape[-1] > _WIDEST:
        return rms_norm_plain(x, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        flat = x.reshape(-1, width)
        if flat.stride(-1) != 1:
            flat = flat.contiguous()
        output = flat.new_empty(flat.shape)
        scales = flat.new_empty(len(flat), dtype=torch.float32)
        if flat.numel():
            _triton().forward[(len(flat),)](
                flat, weight, output, scales, flat.stride(0), width, eps, BLOCK=_block(width), num_warps=_warps(width)
            )
        ctx.save_for_backward(flat, weight, scales)
        ctx.shape = x.shape
        return output.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, scales = ctx.saved_tensors
        rows, width = flat.shape
        grad = grads[0].reshape(rows, width).contiguous()
        grad_x = torch.empty_like(grad)
        programs = -(-rows // _ROWS)
        parts = grad.new_empty(programs, width, dtype=torch.float32)
        if grad.numel():
            _triton().backward[(programs,)](
                grad, flat, weight, scales, grad_x, parts, flat.stride(0), rows, width,
                ROWS=_ROWS, BLOCK=_block(width), num_warps=_warps(width),
            )  # fmt: skip
        return grad_x.view(ctx.shape), parts.sum(dim=0).to(weight.dtype), None


def _block(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _warps(width: int) -> int:
    """Warps of 32 threads, of which each holds about 8 elements."""
    return min(16, max(1, _block(width) // 256))


@cache
def _triton() -> Any:
    from pentad.kernels import norm_triton

    return norm_triton
