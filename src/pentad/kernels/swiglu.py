"""SwiGLU between two matrix products, in one pass each way.

`silu(gate) * up`, https://arxiv.org/abs/2002.05202, optionally times one weight a row (the router's, for experts).
Invariant: gate and up are the halves of the last dimension, in this order (Megatron's layout). Arithmetic is float32
whatever the operands are; the result is rounded once.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import silu

Version = Literal["torch", "triton"]


def swiglu_plain(x: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """`[t, 2 * f]` to `[t, f]`, differentiable."""
    gate, up = x.float().chunk(2, dim=-1)
    output = silu(gate) * up
    if row_weights is not None:
        output = output * row_weights[:, None].float()
    return output.to(x.dtype)


def swiglu_backward_plain(
    grad: Tensor, x: Tensor, row_weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of x, the output again, and the gradient of the row weights (float32).

    Args:
        grad: `[t, f]`, of the output.
        x: `[t, 2 * f]`.
    """
    gate, up = x.float().chunk(2, dim=-1)
    grad32 = grad.float()
    sigmoid = gate.sigmoid()
    activated = gate * sigmoid
    output, grad_rows = activated * up, None
    if row_weights is not None:
        grad_rows = (grad32 * output).sum(dim=-1)
        output = output * row_weights[:, None].float()
        grad32 = grad32 * row_weights[:, None].float()
    grad_gate = grad32 * up * (sigmoid + activated * (1 - sigmoid))
    grad_x = torch.cat((grad_gate, grad32 * activated), dim=-1)
    return grad_x.to(x.dtype), output.to(x.dtype), grad_rows


def swiglu_forward(x: Tensor, row_weights: Tensor | None, version: Version) -> Tensor:
    """`[t, 2 * f]`, contiguous, to `[t, f]`; not differentiable."""
    if version == "torch":
        return swiglu_plain(x, row_weights)
    rows, width = x.shape[0], x.shape[1] // 2
    output = x.new_empty(rows, width)
    if output.numel():
        block = _block(width)
        _triton().forward[(rows, -(-width // block))](
            x, row_weights, output, width, HAS_WEIGHTS=row_weights is not None, BLOCK=block, num_warps=4
        )
    return output


def swiglu_backward(
    grad: Tensor, x: Tensor, row_weights: Tensor | None, version: Version
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `swiglu_backward_plain`; grad and x contiguous."""
    if version == "torch":
        return swiglu_backward_plain(grad, x, row_weights)
    rows, width = grad.shape
    grad_x, output = torch.empty_like(x), torch.empty_like(grad)
    grad_rows = None if row_weights is None else x.new_empty(rows, dtype=torch.float32)
    if output.numel():
        block = _block(width)
        # A row sum needs the whole row in one program.
        blocks = -(-width // block)
        blocks, steps = (blocks, 1) if row_weights is None else (1, blocks)
        _triton().backward[(rows, blocks)](
            grad, x, row_weights, grad_x, output, grad_rows, width,
            STEPS=steps, HAS_WEIGHTS=row_weights is not None, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return grad_x, output, grad_rows


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, row_weights: Tensor | None, version: Version) -> Tensor:
        ctx.save_for_backward(x, row_weights)
        ctx.version = version
        return swiglu_forward(x, row_weights, version)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, row_weights = ctx.saved_tensors
        grad_x, _, grad_rows = swiglu_backward(grads[0].contiguous(), x, row_weights, ctx.version)
        return grad_x, None if row_weights is None else grad_rows.to(row_weights.dtype), None


def swiglu(x: Tensor, row_weights: Tensor | None = None, *, version: Version) -> Tensor:
    """`silu(gate) * up`, times a weight a row; keeps nothing but its inputs for backward.

    Args:
        x: `[t, 2 * f]`: gate, then up.
        row_weights: `[t]`.

    Returns:
        `[t, f]`, in x's dtype.
    """
    return _SwiGLU.apply(x.contiguous(), row_weights, version)


def _block(width: int) -> int:
    return min(2048, 1 << max(4, (width - 1).bit_length()))


@cache
def _triton() -> Any:
    from pentad.kernels import swiglu_triton

    return swiglu_triton
