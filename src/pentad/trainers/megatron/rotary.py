"""Rotary position tables, with the frequencies of transformers' scaling rules.

Su et al., RoFormer, https://arxiv.org/abs/2104.09864. Invariant: tables depend on positions alone, never on the
batch; `pentad.families.hf_config` refuses scaling rules that do depend on the batch.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class RotaryTable:
    """Grows on demand; one a model."""

    def __init__(self, config: PreTrainedConfig, device: torch.device) -> None:
        # As transformers' LlamaRotaryEmbedding does, whose import takes seconds.
        rule = config.rope_parameters["rope_type"]
        frequencies, self._scaling = (_unscaled if rule == "default" else ROPE_INIT_FUNCTIONS[rule])(config)
        self._frequencies = frequencies.to(device)
        self._device = device
        self._tables: tuple[Tensor, Tensor] | None = None

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine at positions 0, 1, ..., both float32 `[at least length, head_dim]`."""
        if self._tables is None or self._tables[0].shape[0] < length:
            positions = torch.arange(max(length, 512), device=self._device)
            angles = (positions[:, None].float() * self._frequencies).repeat(1, 2)
            self._tables = (angles.cos() * self._scaling, angles.sin() * self._scaling)
        return self._tables


def _unscaled(config: PreTrainedConfig) -> tuple[Tensor, float]:
    """Frequencies, float32 `[head_dim / 2]`, and the factor of the tables."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size), 1.0
