"""The output layer of a critic: one value a token, in place of logits.

Invariant: weight and values are float32, whatever the model is; every tensor-parallel rank holds the whole weight. With
sequence parallelism a rank computes the values of its own tokens, so its gradient of the weight is a part of a sum.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ValueHead(nn.Module):
    """A linear layer from hidden states to one value, without bias; `score` in Hugging Face's names.

    Args:
        hidden_size: width of the hidden states.
        sequence_parallel: each tensor-parallel rank has a part of the tokens.
        device: of the weight, which is not initialised.
    """

    def __init__(self, hidden_size: int, *, sequence_parallel: bool, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size, dtype=torch.float32, device=device))
        # Megatron sums the gradients of what is marked so over the tensor-parallel ranks.
        self.weight.sequence_parallel = sequence_parallel
        self.weight.is_embedding_or_output_parameter = True

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` of any dtype -> float32 `[...]`."""
        return functional.linear(hidden.float(), self.weight).squeeze(-1)
