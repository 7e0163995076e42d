"""Picking rows, with a backward that writes each of them once.

Invariant: no row is picked twice, so nothing is summed and the gradient is the same bits every time.
"""

from typing import Any

import torch
from torch import Tensor


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, index, grads[0]), None


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]`.

    Args:
        x: `[t, ...]`.
        index: int64 `[n]`, all different.
    """
    return _TakeRows.apply(x, index)
