"""An output layer with float32 logits."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pentad.kernels.matmul import mm_float32


class FloatLogits(torch.nn.Linear):
    """A linear layer without bias, for inference, whose output is float32 whatever its weight is."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., hidden_size]` to float32 `[..., vocabulary]`."""
        logits = mm_float32(input.reshape(-1, input.shape[-1]), self.weight.t())
        return logits.view(*input.shape[:-1], -1)


def use_float_logits(model: PreTrainedModel) -> None:
    """Put a `FloatLogits` in the place of a model's output layer, with the same weight."""
    old = model.get_output_embeddings()
    with torch.device("meta"):
        head = FloatLogits(old.in_features, old.out_features, bias=False)
    head.weight = old.weight
    model.set_output_embeddings(head)
