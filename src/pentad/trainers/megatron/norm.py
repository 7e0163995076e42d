"""Root-mean-square normalisation for Megatron layers (https://arxiv.org/abs/1910.07467).

Invariant: under sequence parallelism its weight is marked, so that Megatron sums its gradient over the ranks
that each saw a part of the tokens.
"""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from pentad.kernels.norm import rms_norm, rms_norm_plain


class RMSNorm(torch.nn.Module):
    """`x / rms(x) * weight` over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        """`[..., hidden_size]` to the same."""
        return rms_norm_plain(x, self.weight, self.eps)


class FastRMSNorm(RMSNorm):
    """The same by Triton."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
