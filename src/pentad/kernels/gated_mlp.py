"""A SwiGLU MLP as one operation: two matrix products, what is between them, and their gradients.

`w2 (silu(gate) * up)` with `[gate; up] = w1 x`, https://arxiv.org/abs/2002.05202.

Invariant: only x and the first product are kept for backward; the activation is computed again there. Weight gradients
go where `pentad.kernels.linear` puts them. w1's rows are all of gate, then all of up (Megatron's layout).

Three versions: `torch` and `triton` differ in the pass between the products (`pentad.kernels.swiglu`); `quack`
(https://github.com/Dao-AILab/quack, Hopper) has no such pass: the first product's epilogue computes the activation, the
epilogue of fc2's data gradient its backward. Inside, quack interleaves gate and up columns; its products with w1 undo
that.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pentad.kernels.linear import InputGradient, gather_tokens, has_buffer, placeholder, weight_gradient
from pentad.kernels.swiglu import swiglu_backward, swiglu_forward, swiglu_plain

Version = Literal["torch", "triton", "quack"]


def gated_mlp_plain(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    """`[t, k]` to `[t, n]` on one rank, by autograd alone."""
    return swiglu_plain(x @ weight1.t()) @ weight2.t()


def gated_mlp(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    *,
    version: Version,
    group: ProcessGroup | None = None,
    scatter: bool = False,
) -> Tensor:
    """A SwiGLU MLP on this rank's part of the inner width.

    Args:
        x: `[t, ..., k]`.
        weight1: `[2 * f, k]`: the rows of gate, then those of up.
        weight2: `[n, f]`.
        group: ranks that hold other parts of the inner width; the gradient of x is summed over them.
        scatter: x holds this rank's tokens only (sequence parallelism): it is gathered, and its gradient scattered.

    Returns:
        `[t (times ranks), ..., n]`, this rank's part of a sum over the group.
    """
    # A group of one rank has nothing to exchange.
    shared = group if group is not None and group.size() > 1 else None
    if version == "quack" and not _quack_fits(weight1, weight2):
        version = "triton"
    return _GatedMLP.apply(
        x, weight1, weight2, version, shared, scatter and shared is not None, torch.is_grad_enabled()
    )


def _quack_fits(weight1: Tensor, weight2: Tensor) -> bool:
    """Rows of 16 bytes in every operand of every product."""
    return weight1.shape[1] % 8 == 0 and weight2.shape[0] % 8 == 0 and weight2.shape[1] % 8 == 0


class _GatedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        weight2: Tensor,
        version: Version,
        group: ProcessGroup | None,
        scatter: bool,
        keep: bool,
    ) -> Tensor:
        shape = x.shape
        flat = x.reshape(-1, shape[-1])
        if scatter:
            flat, _ = gather_tokens(flat, group)
        if version == "quack":
            first, inner = _quack_forward(flat, weight1, keep)
        else:
            first = flat @ weight1.t()
            inner = swiglu_forward(first, None, version)
        if keep:
            ctx.save_for_backward(x, first, weight1, weight2)
            ctx.arguments = (version, group, scatter)
        return (inner @ weight2.t()).view(-1, *shape[1:-1], weight2.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, first, weight1, weight2 = ctx.saved_tensors
        version, group, scatter = ctx.arguments
        quack = version == "quack"
        grad = grads[0].reshape(-1, weight2.shape[0]).contiguous()
        flat, handle = x.reshape(-1, x.shape[-1]), None
        if scatter:
            flat, handle = gather_tokens(flat, group, wait=False)
        for_x, for_weight1, for_weight2 = ctx.needs_input_grad[:3]
        if quack:
            grad_first, inner = _quack_backward(grad, first, weight2)
        else:
            grad_first, inner, _ = swiglu_backward(grad @ weight2, first, None, version)
        grad_weight2 = weight_gradient(weight2, grad, inner) if for_weight2 else None
        del inner
        sent = None
        if for_x:
            grad_flat = _quack_input_gradient(grad_first, weight1) if quack else grad_first @ weight1
            sent = InputGradient(grad_flat, group, scatter=scatter)
        if handle is not None:
            handle.wait()
        of_first = _quack_weight_gradient if quack else weight_gradient
        grad_weight1 = of_first(weight1, grad_first, flat) if for_weight1 else None
        grad_x = None if sent is None else sent.result().view(x.shape)
        return grad_x, grad_weight1, grad_weight2, None, None, None, None


def _quack_forward(x: Tensor, weight1: Tensor, keep: bool) -> tuple[Tensor | None, Tensor]:
    """The first product with gate and up columns interleaved `[t, 2 * f]` (None unless `keep`), and the activation."""
    from quack.gemm_interface import gemm_gated

    return gemm_gated(
        x, weight1.t(), activation="swiglu", concat_layout=("B",), store_preact=keep, tuned=False
    )  # fmt: skip


def _quack_backward(grad: Tensor, first: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the first product, interleaved as it is, and the activation again."""
    from quack.gemm_interface import gemm_dgated

    return gemm_dgated(grad, weight2, first, activation="swiglu", tuned=False)


def _quack_input_gradient(grad_first: Tensor, weight1: Tensor) -> Tensor:
    from quack.gemm_interface import gemm_tuned

    output = grad_first.new_empty(grad_first.shape[0], weight1.shape[1])
    gemm_tuned.fn(grad_first, weight1, output, config=_tiles(1, 2), concat_layout=("B",))
    return output


def _quack_weight_gradient(weight1: Tensor, grad_first: Tensor, x: Tensor) -> Tensor:
    from quack.gemm_interface import gemm_tuned

    buffered = has_buffer(weight1)
    into = weight1.main_grad if buffered else torch.zeros_like(weight1)
    gemm_tuned.fn(
        grad_first.t(), x, into, add_to_output=True, config=_tiles(2, 1), concat_layout=("C", "out")
    )  # fmt: skip
    return placeholder(weight1) if buffered else into


def _tiles(cluster_m: int, cluster_n: int) -> Any:
    """Tiles of 128 x 256 for the two products that have no epilogue: 5% faster on an H200 than quack's default."""
    from quack.gemm_config import GemmConfig

    return GemmConfig(
        tile_m=128, tile_n=256, pingpong=False, cluster_m=cluster_m, cluster_n=cluster_n,
        is_dynamic_persistent=False, device_capacity=9,
    )  # fmt: skip
