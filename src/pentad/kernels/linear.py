"""Linear layers whose weight gradient goes straight into its float32 buffer.

Invariant: after backward the buffer `weight.main_grad` holds what it held before plus `dy^T x`, added in float32 inside
the matrix product; without such a buffer the gradient is returned to autograd, as for any function.

Megatron's data-parallel wrapper reads two attributes of a parameter: `main_grad`, its part of the gradient buffer, and
`grad_added_to_main_grad`, which tells its hook that the gradient is in there already. The hook itself must still run,
as it starts the reduction, so a placeholder is returned for the gradient.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup, ReduceOp


def add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    """`into += a @ b`, in the precision of `into`.

    Args:
        into: `[m, n]`, float32 or of the operands' dtype.
        a, b: `[m, k]` and `[k, n]`.
    """
    if into.dtype == a.dtype:
        into.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    else:
        into.addmm_(a.to(into.dtype), b.to(into.dtype))


def has_buffer(weight: Tensor) -> bool:
    """Whether a gradient buffer of the data-parallel wrapper stands ready for this weight."""
    return getattr(weight, "main_grad", None) is not None and hasattr(weight, "grad_added_to_main_grad")


def placeholder(weight: Tensor) -> Tensor:
    """What autograd is given once the gradient is in the buffer; marks it as added.

    Its content is not read, but for a weight that has a second use on this rank (`zero_out_wgrad`: tied embeddings).
    Then autograd adds it to the gradient of the other use, so it is 0.
    """
    weight.grad_added_to_main_grad = True
    if getattr(weight, "zero_out_wgrad", False):
        return weight.new_zeros(()).expand(weight.shape)
    return torch.empty_like(weight)


def weight_gradient(weight: Tensor, grad_output: Tensor, x: Tensor) -> Tensor:
    """The gradient of `x @ weight^T` by the weight: added to its buffer, or returned.

    Args:
        weight: `[n, k]`.
        grad_output, x: `[t, n]` and `[t, k]`.
    """
    if not has_buffer(weight):
        return grad_output.t() @ x
    add_product(weight.main_grad, grad_output.t(), x)
    return placeholder(weight)


def gather_tokens(x: Tensor, group: ProcessGroup, *, wait: bool = True) -> tuple[Tensor, Any]:
    """`[t, k]` of each rank to `[t * ranks, k]`, and the handle to wait for (None if `wait`)."""
    whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    handle = distributed.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=not wait)
    return whole, handle


class InputGradient:
    """Sends a partial input gradient to the ranks that share the input, while other work goes on.

    Args:
        grad: `[t, k]`, this rank's part of a sum over the group.
        scatter: each rank keeps the sum for its own tokens (sequence parallelism); else for all.
        group: None, or of one rank: there is nothing to send.
    """

    def __init__(self, grad: Tensor, group: ProcessGroup | None, *, scatter: bool) -> None:
        self._result, self._handle = grad, None
        if group is None or group.size() == 1:
            return
        if scatter:
            self._result = grad.new_empty(grad.shape[0] // group.size(), *grad.shape[1:])
            self._handle = distributed.reduce_scatter_tensor(
                self._result, grad.contiguous(), op=ReduceOp.SUM, group=group, async_op=True
            )
        else:
            self._handle = distributed.all_reduce(grad, group=group, async_op=True)

    def result(self) -> Tensor:
        if self._handle is not None:
            self._handle.wait()
        return self._result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: ProcessGroup | None, scatter: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arguments = (group, scatter, bias is not None)
        shape = x.shape
        flat = x.reshape(-1, shape[-1])
        if scatter:
            flat, _ = gather_tokens(flat, group)
        output = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        return output.view(-1, *shape[1:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        group, scatter, has_bias = ctx.arguments
        grad_output = grads[0].reshape(-1, weight.shape[0])
        flat, handle = x.reshape(-1, x.shape[-1]), None
        if scatter:
            flat, handle = gather_tokens(flat, group, wait=False)
        sent = InputGradient(grad_output @ weight, group, scatter=scatter) if ctx.needs_input_grad[0] else None
        if handle is not None:
            handle.wait()
        grad_weight = weight_gradient(weight, grad_output, flat) if ctx.needs_input_grad[1] else None
        grad_bias = grad_output.sum(dim=0) if has_bias and ctx.needs_input_grad[2] else None
        grad_x = sent.result().view(x.shape) if sent is not None else None
        return grad_x, grad_weight, grad_bias, None, None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: ProcessGroup | None = None, scatter: bool = False
) -> Tensor:
    """`x @ weight^T + bias`; the weight's gradient goes into its buffer where there is one.

    Args:
        x: `[t, ..., k]`.
        weight: `[n, k]`, this rank's rows.
        bias: `[n]`.
        group: ranks that hold other rows of the weight; the gradient of x is summed over them. None: it is not sent
            anywhere.
        scatter: x holds this rank's tokens only (sequence parallelism): it is gathered, and its gradient scattered.

    Returns:
        `[t (times ranks), ..., n]`.
    """
    return _Linear.apply(x, weight, bias, group, scatter and group is not None and group.size() > 1)


def linear_plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same for one rank by autograd alone: the oracle of `linear`."""
    return torch.nn.functional.linear(x, weight, bias)
