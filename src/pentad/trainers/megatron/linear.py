"""Megatron's column- and row-parallel layers with Pentad's matrix products.

Invariant: parameters, their splitting and the exchange between ranks are Megatron's; only the product and the way of
its weight gradient are `pentad.kernels.linear`'s.
"""

from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor

from pentad.kernels.linear import linear


class ColumnLinear(ColumnParallelLinear):
    """A weight split by rows of its matrix, over the ranks that share its input."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scatter = kwargs["sequence_parallel"]
        group = kwargs["tp_group"] if scatter or kwargs["allreduce_dgrad"] else None
        return linear(input, weight, kwargs["bias"], group=group, scatter=scatter)


class RowLinear(RowParallelLinear):
    """A weight split by columns of its matrix; Megatron sums the output over the ranks."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return linear(input, weight, kwargs["bias"])
