"""Putting prefixes into the cache, before the first step samples.

Invariant: equal prefixes that come together are computed once, whoever asks for them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pentad.engines.hf.cache import SlotCache


def prefill(
    model: PreTrainedModel, cache: SlotCache, rows: Sequence[int], prefixes: Sequence[Tensor], pass_tokens: int
) -> None:
    """Compute keys and values of whole prefixes.

    Args:
        rows: of the cache, one for each prefix.
        prefixes: int64 `[L]` each, L >= 0.
        pass_tokens: padded tokens of one forward pass, unless one prefix alone is longer.
    """
    device = model.device
    rows_of: dict[bytes, list[int]] = {}
    prefix_of: dict[bytes, Tensor] = {}
    for row, prefix in zip(rows, prefixes, strict=True):
        key = prefix.numpy().tobytes()
        rows_of.setdefault(key, []).append(row)
        prefix_of.setdefault(key, prefix)
    # Longest first, so that the width is known; prefixes of like length share a pass.
    keys = sorted((key for key in rows_of if key), key=len)
    while keys:
        width = len(prefix_of[keys[-1]])
        batch = keys[-max(1, pass_tokens // width) :]
        del keys[-len(batch) :]
        tokens = torch.zeros(len(batch), width, dtype=torch.int64)
        for row, key in zip(tokens, batch, strict=True):
            row[: len(prefix_of[key])] = prefix_of[key]
        # Padding is on the right, where causal attention never looks, and decoding overwrites it.
        cache.prefill(
            slots=torch.tensor([slot for key in batch for slot in rows_of[key]], device=device),
            source=torch.tensor([i for i, key in enumerate(batch) for _ in rows_of[key]], device=device),
        )
        model.base_model(
            input_ids=tokens.to(device),
            position_ids=torch.arange(width, device=device)[None].expand(len(batch), -1),
            past_key_values=cache,
            use_cache=True,
        )
