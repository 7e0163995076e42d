"""LoRA without adapters in the model: weights merged one by one, and the chain rule.

With `W' = W + s B A` the gradient of a loss by W' is G, so by A it is `s B^T G`, and by B `s G A^T`.
"""

from pathlib import Path

import torch
from tiny import gradients_of
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pentad.config.schema.lora import LoraSettings
from pentad.families.lora import Targets
from pentad.weights.adapters import adapter_shapes, peft_config, write_adapter
from pentad.weights.mapping import WeightMapping
from pentad.weights.table import WeightTable

A, B = ".lora_A.weight", ".lora_B.weight"


def random_adapter(config: PreTrainedConfig, lora: LoraSettings, directory: Path, seed: int = 1) -> dict[str, Tensor]:
    """Matrices of an adapter by name, none of them zero; written to a directory in PEFT's format."""
    mapping = WeightMapping(config, None, Targets(lora.targets, lora.exclude))
    random = torch.Generator().manual_seed(seed)
    shapes = adapter_shapes(config, mapping, lora.rank)
    found = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in shapes.items()}
    write_adapter(found.items(), directory, peft_config(lora, "", mapping.adapted_modules()))
    return found


@torch.no_grad()
def merge_into(model: PreTrainedModel, matrices: dict[str, Tensor], scale: float) -> None:
    """Add `s B A` to the weights of the model, each under its checkpoint name."""
    weights = WeightTable(model).tensors
    for name in matrices:
        if name.endswith(A):
            module = name.removesuffix(A)
            weights[f"{module}.weight"] += scale * matrices[module + B] @ matrices[module + A]


def adapted_gradients(model: PreTrainedModel, matrices: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Gradients of the matrices, after a backward pass through the merged model."""
    whole = gradients_of(model)
    found = {}
    for name in matrices:
        if name.endswith(A):
            module = name.removesuffix(A)
            gradient = whole[f"{module}.weight"]
            found[module + A] = scale * matrices[module + B].t() @ gradient
            found[module + B] = scale * gradient @ matrices[module + A].t()
    return found
