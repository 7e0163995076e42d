"""What a transformers model computes with beside its weights; see `pentad.weights.constants`.

Invariant: read from the modules that score and sample.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from pentad.weights.constants import ModelConstants, norm_response, rotary_constants


@torch.no_grad()
def read_constants(model: PreTrainedModel, positions: Sequence[int]) -> ModelConstants:
    """The constants of all layers.

    Args:
        positions: for the rotary angles; not negative.
    """
    # A norm has one parameter, of one dimension; those of embeddings and projections have two, and biases may join.
    norms = {
        f"{name}.weight": norm_response(module, module.weight)
        for name, module in model.named_modules()
        if [(key, value.dim()) for key, value in module.named_parameters(recurse=False)] == [("weight", 1)]
    }
    like = torch.empty(0, dtype=torch.float32, device=model.device)
    cos, sin = model.model.rotary_emb(like, torch.tensor([list(positions)], device=model.device))
    attention = {number: float(layer.self_attn.scaling) for number, layer in enumerate(model.model.layers)}
    return ModelConstants(norms, rotary_constants(cos[0], sin[0], positions), attention)
