"""Choosing the next token of every row.

Invariant: a row's token depends on that row's logits, parameters and random number alone, never on its neighbours.
"""

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

SampleMode = Literal["greedy", "full", "nucleus"]
"""The most that any row in flight asks for. What no row asks for is not computed."""


def uniforms(seed: int, request_id: str, sample: int, count: int) -> np.ndarray:
    """The random numbers of one completion: float64 `[count]` in [0, 1), one a token.

    Philox is counter-based: number `i` is the same however many are drawn.
    """
    digest = hashlib.blake2b(f"{seed}/{sample}/{request_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def sample(
    logits: Tensor, temperature: Tensor, greedy: Tensor, top_p: Tensor, uniform: Tensor, mode: SampleMode
) -> tuple[Tensor, Tensor]:
    """Sample by inverting the cumulative distribution; no host synchronisation.

    Args:
        logits: float32 `[B, V]`.
        temperature: float32 `[B]`, positive (1 for greedy rows).
        greedy: bool `[B]`: take the likeliest token.
        top_p: float32 `[B]`.
        uniform: float64 `[B]`.
        mode: what is needed by any of the rows.

    Returns:
        tokens int64 `[B]`, and their log-probs float32 `[B]` at the temperature, before top-p.
    """
    logprobs = torch.log_softmax(logits / temperature[:, None], dim=-1)
    tokens = logprobs.argmax(dim=-1)
    if mode != "greedy":
        sampled = _invert(logprobs.exp(), uniform)
        if mode == "nucleus":
            sampled = torch.where(top_p < 1, _invert_nucleus(logprobs, top_p, uniform), sampled)
        tokens = torch.where(greedy, tokens, sampled)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    # In float64: a float32 sum over 10^5 tokens would be off by more than the probability of most of them.
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    return _first_above(cumulative, uniform * cumulative[:, -1])


def _invert_nucleus(logprobs: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    ordered, tokens = logprobs.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.exp().cumsum(dim=-1, dtype=torch.float64)
    wanted = top_p.double() * cumulative[:, -1]
    last = torch.searchsorted(cumulative, wanted[:, None]).clamp_max_(cumulative.shape[1] - 1)
    kept = cumulative.gather(1, last)[:, 0]
    # Rounding must not let a draw just below 1 step over the last token that is kept.
    place = torch.minimum(_first_above(cumulative, uniform * kept), last[:, 0])
    return tokens.gather(1, place[:, None])[:, 0]


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    place = torch.searchsorted(cumulative, target[:, None].contiguous(), right=True)
    return place[:, 0].clamp_max(cumulative.shape[1] - 1)
