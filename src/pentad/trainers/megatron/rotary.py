"""Rotary position tables, computed by transformers so that every scaling rule agrees with it.

Su et al., RoFormer, https://arxiv.org/abs/2104.09864. Invariant: tables depend on positions alone, never on the
batch; `pentad.families.hf_config` refuses scaling rules that do depend on the batch.
"""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


class RotaryTable:
    """Grows on demand; one a model."""

    def __init__(self, config: PreTrainedConfig, device: torch.device) -> None:
        self._module = LlamaRotaryEmbedding(config).to(device)
        self._device = device
        self._tables: tuple[Tensor, Tensor] | None = None

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine at positions 0, 1, ..., both float32 `[at least length, head_dim]`."""
        if self._tables is None or self._tables[0].shape[0] < length:
            positions = torch.arange(max(length, 512), device=self._device)[None]
            like = torch.empty(0, dtype=torch.float32, device=self._device)
            cos, sin = self._module(like, positions)
            self._tables = (cos[0], sin[0])
        return self._tables
