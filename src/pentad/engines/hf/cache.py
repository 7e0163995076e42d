"""A key/value cache of fixed slots in memory that never moves.

Invariant: the key of the token at position `p` of the sequence in slot `s` is at `keys[s, :, p]`. What lies beyond a
sequence's last position is old matter, and nobody reads it.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin


class _SlotLayer(CacheLayerMixin):
    """One layer's `[slots, key/value heads, length, head dim]`."""

    def __init__(self, cache: "SlotCache", shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._cache = cache
        # Zeros, not empty: a masked position still enters the softmax product, and 0 * NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("a slot layer is born initialized")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        cache = self._cache
        if cache.source is not None:
            width = key_states.shape[2]
            self.keys[cache.slots, :, :width] = key_states[cache.source]
            self.values[cache.slots, :, :width] = value_states[cache.source]
            return key_states, value_states
        self.keys[cache.slots, :, cache.positions] = key_states[:, :, 0]
        self.values[cache.slots, :, cache.positions] = value_states[:, :, 0]
        rows = len(cache.slots)
        return self.keys[:rows, :, : cache.length], self.values[:rows, :, : cache.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # Asked at prefill only (decoding brings its own mask), where a prompt attends to nothing but itself.
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class SlotCache(Cache):
    """Keys and values of `rows` sequences of up to `capacity` tokens, in the form that transformers expects.

    Args:
        config: of the model.
        rows: number of slots.
        capacity: longest sequence.
        dtype, device: of keys and values.
    """

    def __init__(
        self, config: PretrainedConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = cache_shape(config, rows, capacity)
        super().__init__(layers=[_SlotLayer(self, shape, dtype, device) for _ in range(config.num_hidden_layers)])
        self.capacity = capacity
        self.slots: Tensor = torch.arange(rows, device=device)
        self.source: Tensor | None = None
        self.positions: Tensor | None = None
        self.length = 0
        self._all_slots = self.slots

    def prefill(self, slots: Tensor, source: Tensor) -> None:
        """The next forward pass brings whole prompts: row `source[i]` of it goes into slot `slots[i]`."""
        self.slots, self.source = slots, source

    def decode(self, positions: Tensor, length: int) -> None:
        """The next forward pass brings one token for each of the first slots, `positions` int64 `[rows]`.

        It attends to positions below `length`, which bounds the cost.
        """
        self.slots, self.source = self._all_slots[: len(positions)], None
        self.positions, self.length = positions, length

    def keep(self, slots: Tensor) -> None:
        """Move the given slots, ascending, to the front."""
        for layer in self.layers:
            layer.keys[: len(slots)] = layer.keys[slots]
            layer.values[: len(slots)] = layer.values[slots]


def cache_shape(config: PretrainedConfig, rows: int, capacity: int) -> tuple[int, int, int, int]:
    """Shape of the keys, and of the values, of one layer."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return rows, config.num_key_value_heads, capacity, head_dim
