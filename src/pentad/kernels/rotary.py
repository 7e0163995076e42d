"""Rotary position embedding of queries and keys (https://arxiv.org/abs/2104.09864), in one pass each way.

Invariant: the tables are rounded to the operand's dtype, as transformers and inference engines do; the fast version
then computes in float32 and rounds once, where the plain one rounds every product. Heads are split in halves, not in
pairs.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Version = Literal["plain", "triton"]


def rotate_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `rotate`."""
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, version: Version) -> Tensor:
    """Rotate each head by its token's position (half-split convention, as in transformers).

    Args:
        x: `[t, heads, head_dim]`; only its last dimension need be contiguous.
        cos, sin: float32 `[t, head_dim]`, contiguous.

    Returns:
        `[t, heads, head_dim]`, contiguous, in x's dtype.
    """
    if version == "plain":
        return rotate_plain(x, cos, sin)
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _launch(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _launch(grads[0], cos, sin, back=True), None, None


def _launch(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    tokens, heads, head_dim = x.shape
    output = x.new_empty(x.shape)
    if output.numel():
        half = head_dim // 2
        block_half = 1 << (half - 1).bit_length()
        block_heads = max(1, min(1 << (heads - 1).bit_length(), 2048 // block_half))
        _triton().rotate[(tokens, -(-heads // block_heads))](
            x, cos, sin, output, x.stride(0), x.stride(1), heads, half,
            BACK=back, HEADS=block_heads, HALF=block_half, num_warps=4,
        )  # fmt: skip
    return output


@cache
def _triton() -> Any:
    from pentad.kernels import rotary_triton

    return rotary_triton
