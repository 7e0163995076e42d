"""What the trainer's model computes with beside its weights; see `pentad.weights.constants`.

Invariant: read from the modules that training runs, on each rank for its own layers.
"""

from collections.abc import Sequence

import torch

from pentad.trainers.megatron.attention import PackedAttention
from pentad.trainers.megatron.norm import RMSNorm
from pentad.trainers.megatron.trainer import Trainer
from pentad.weights.constants import ModelConstants, norm_response, rotary_constants


def read_constants(trainer: Trainer, positions: Sequence[int]) -> ModelConstants:
    """The constants of this rank's layers.

    Args:
        positions: for the rotary angles; not negative.
    """
    names = {parameter: name for name, parameter in trainer.parameters()}
    norms: dict[str, float] = {}
    attention: dict[int, float] = {}
    for chunk in trainer.chunks:
        for module in chunk.module.modules():
            if isinstance(module, RMSNorm):
                _, (name,) = trainer.mapping.rule_of(names[module.weight])
                norms[name] = norm_response(module, module.weight)
            elif isinstance(module, PackedAttention):
                attention[module.layer_number - 1] = module.softmax_scale
    cos, sin = trainer.rotary.tables(max(positions) + 1)
    chosen = torch.tensor(positions, device=cos.device)
    return ModelConstants(norms, rotary_constants(cos[chosen], sin[chosen], positions), attention)
