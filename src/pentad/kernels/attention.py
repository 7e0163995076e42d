"""Causal attention over packed sequences, without padding.

Invariant: a query attends to the keys of its own sequence up to its own place. Where a sequence has more keys than
queries, the last query stands beside the last key.

`varlen` is torch's own kernel (FlashAttention 2), `flash4` is FlashAttention 4 (https://arxiv.org/abs/2603.05451), both
for half precision on GPUs; the plain version takes the sequences one by one.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

Version = Literal["varlen", "flash4"]


def attention_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scale: float,
    key_lengths: Sequence[int] | None = None,
) -> Tensor:
    """Each sequence by itself.

    Args:
        query: `[t, heads, head_dim]`.
        key, value: `[s, key/value heads, head_dim]`.
        lengths: queries of each sequence.
        key_lengths: keys of each sequence, no fewer than its queries; None where they are as many.

    Returns:
        `[t, heads, head_dim]`.
    """
    splits = lengths, key_lengths or lengths, key_lengths or lengths
    parts = (x.split(list(each)) for x, each in zip((query, key, value), splits, strict=True))
    return torch.cat([_attend(q, k, v, scale) for q, k, v in zip(*parts, strict=True)])


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One sequence."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    mask, earlier = None, len(key) - len(query)
    if earlier:
        # torch's own mask would have the first query beside the first key.
        mask = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device).tril(earlier)
    output = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return output[0].transpose(0, 1)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    version: Version,
) -> Tensor:
    """Attend within each sequence of a pack.

    Args:
        query: `[t, heads, head_dim]`, bfloat16 or float16.
        key, value: `[s, key/value heads, head_dim]`.
        cu_seqlens_q, cu_seqlens_k: int32 `[sequences + 1]`, where each sequence begins among queries and keys.
        max_seqlen_q, max_seqlen_k: at least the longest sequence.
        scale: multiplies the scores.

    Returns:
        `[t, heads, head_dim]`.
    """
    if version == "flash4" and _flash4_fits(query.shape[-1]):
        from flash_attn.cute.interface import flash_attn_varlen_func

        return flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            softmax_scale=scale,
            causal=True,
        )[0]
    return varlen_attn(
        query,
        key,
        value.contiguous(),
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        scale=scale,
        window_size=(-1, 0),
    )


def _flash4_fits(head_dim: int) -> bool:
    """Widths that were tested on Hopper; at 16 its backward does not compile."""
    return head_dim in (64, 128)
