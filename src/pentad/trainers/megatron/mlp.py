"""Megatron's MLP as one operation.

Invariant: parameters and the exchange between ranks are Megatron's; the arithmetic is `pentad.kernels.gated_mlp`'s.
What that does not cover (other activations, biases, adapters, a weight for each token) is left to Megatron.
"""

from dataclasses import dataclass
from typing import Any

from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from torch import Tensor
from torch.nn.functional import silu

from pentad.kernels.gated_mlp import Version, gated_mlp


@dataclass
class GatedMLPSubmodules(MLPSubmodules):
    """Megatron's, and which version of the kernel computes them."""

    version: Version = "torch"


class GatedMLP(MLP):
    """`w2 (silu(gate) * up)`, with `[gate; up] = w1 x`."""

    def __init__(self, *args: Any, submodules: GatedMLPSubmodules, **kwargs: Any) -> None:
        super().__init__(*args, submodules=submodules, **kwargs)
        self.version = submodules.version
        config = self.config
        self._covered = (
            config.gated_linear_unit
            and config.activation_func is silu
            and not config.add_bias_linear
            and config.activation_func_clamp_value is None
            and config.glu_linear_offset == 0
        )

    def forward(
        self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """`[t, 1, hidden]` to the same, and no bias."""
        adapted = "lora" in self.linear_fc1._modules or "lora" in self.linear_fc2._modules
        if not self._covered or adapted or per_token_scale is not None:
            return super().forward(hidden_states, per_token_scale, **kwargs)
        weight1, weight2 = self.linear_fc1.weight, self.linear_fc2.weight
        group, scatter = self.linear_fc1.tp_group, self.linear_fc1.sequence_parallel
        output = gated_mlp(hidden_states, weight1, weight2, version=self.version, group=group, scatter=scatter)
        if scatter:
            return reduce_scatter_to_sequence_parallel_region(output, group=group), None
        return reduce_from_tensor_model_parallel_region(output, group=group), None
