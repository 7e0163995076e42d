"""All experts of a rank as two stacked matrices, by PyTorch's grouped matrix product.

Invariant: a token's output depends on its own expert only, whatever other tokens are there; an expert without tokens
gets a zero gradient, not none.
"""

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import grouped_mm, silu

from pentad.kernels.selection import PLAIN, Kernels
from pentad.kernels.swiglu import swiglu


class GroupedExperts(MegatronModule):
    """Gated experts: `w2 (silu(w1_gate x) * w1_up x)`, times the router's weight for the token.

    Args:
        num_local_experts: experts of this expert-parallel rank.
        pg_collection: `expt_tp` splits the experts' inner width.
        kernels: which version of each operation is used.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        *,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
        kernels: Kernels = PLAIN,
    ) -> None:
        super().__init__(config=config)
        self.kernels = kernels
        ranks = pg_collection.expt_tp.size()
        width = config.moe_ffn_hidden_size // ranks
        # weight1: [experts, gate then up, hidden]; weight2: [experts, hidden, inner].
        self.weight1 = self._parameter(num_local_experts, 2 * width, config.hidden_size)
        self.weight2 = self._parameter(num_local_experts, config.hidden_size, width)
        # Tokens that each expert was given since somebody last set it to 0.
        self.load = torch.zeros(num_local_experts, dtype=torch.int64, device=torch.cuda.current_device())
        for weight, dim in ((self.weight1, 1), (self.weight2, 2)):
            # Reduced over the replicas of the experts, which are other ranks than those of dense weights.
            weight.allreduce = False
            # No two ranks hold the same part, so the gradient norm counts each.
            weight.tensor_model_parallel = True
            weight.partition_dim = dim
            weight.partition_stride = 1

    def _parameter(self, *shape: int) -> torch.nn.Parameter:
        device = torch.cuda.current_device()
        return torch.nn.Parameter(torch.empty(shape, dtype=self.config.params_dtype, device=device))

    def forward(self, hidden: Tensor, tokens_per_expert: Tensor, weights: Tensor) -> tuple[Tensor, None]:
        """Apply each expert to its tokens.

        Args:
            hidden: `[n, hidden_size]`, sorted by expert.
            tokens_per_expert: int64 `[num_local_experts]`.
            weights: `[n]`, the router's weight of each token's expert.

        Returns:
            `[n, hidden_size]` (this rank's part of a sum over `expt_tp`), and no bias.
        """
        self.load += tokens_per_expert.to(self.load.device)
        first = self._product(1, hidden, tokens_per_expert)
        if self.kernels.experts == "triton":
            inner = swiglu(first, weights, version="triton")
        else:
            gate, up = first.chunk(2, dim=-1)
            inner = (silu(gate) * up * weights[:, None]).to(hidden.dtype)
        return self._product(2, inner, tokens_per_expert), None

    def _product(self, number: int, x: Tensor, tokens_per_expert: Tensor) -> Tensor:
        """With `weight1` or `weight2`, and the adapter beside it."""
        output = grouped(x, getattr(self, f"weight{number}"), tokens_per_expert)
        adapter: Any = self._modules.get(f"lora{number}")
        if adapter is None or not adapter.enabled:
            return output
        hidden = grouped(adapter.inner(x), adapter.A, tokens_per_expert)
        return output + (adapter.scale * grouped(hidden, adapter.wide(), tokens_per_expert)).to(output.dtype)

    def backward_dw(self) -> None:
        """Weight gradients are computed with the rest of the backward pass."""


def grouped(x: Tensor, weight: Tensor, tokens_per_expert: Tensor) -> Tensor:
    """`x[i] @ weight[expert of i].T`.

    Args:
        x: `[n, in]`, sorted by expert.
        weight: `[experts, out, in]`.
        tokens_per_expert: int64 `[experts]`.
    """
    if x.shape[0] and all(size * x.element_size() % 16 == 0 for size in weight.shape[1:]):
        ends = tokens_per_expert.to(x.device).cumsum(0).to(torch.int32)
        return grouped_mm(x, weight.transpose(1, 2), offs=ends)
    # The grouped product needs rows of a multiple of 16 bytes, and tokens.
    parts = x.split(tokens_per_expert.tolist())
    return torch.cat([part @ matrix.t() for part, matrix in zip(parts, weight.unbind(), strict=True)])
