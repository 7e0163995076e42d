"""What a log-prob needs of a chunk of logits, and the gradient of the chunk, with one read of it each.

Invariant: columns from `real` on are padding: they count as probability 0 and have gradient 0. Results are float32 and
relative to the row's own maximum, so no small number is left as the difference of two large ones.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCK = 4096


class Statistics(NamedTuple):
    """Of each row of `[n, columns]` logits, float32 `[n]`.

    Attributes:
        peak: the largest; -inf if all columns are padding.
        total: sum of `exp(d)`, with `d = (logit - peak) / temperature`.
        weighted: sum of `exp(d) * d`.
        picked: the target's logit; 0 if the target is not among the columns.
    """

    peak: Tensor
    total: Tensor
    weighted: Tensor
    picked: Tensor


def row_statistics_plain(
    logits: Tensor, targets: Tensor, *, vocab_start: int, real: int, temperature: float
) -> Statistics:
    """See `row_statistics`."""
    if real == 0:
        zero = logits.new_zeros(logits.shape[0])
        return Statistics(zero - torch.inf, zero, zero, zero)
    peak = logits[:, :real].max(dim=-1).values
    relative = (logits[:, :real] - peak[:, None]) / temperature
    weights = relative.exp()
    local = targets - vocab_start
    mine = (local >= 0) & (local < real)
    picked = logits.gather(-1, local.where(mine, 0)[:, None])[:, 0].where(mine, 0.0)
    return Statistics(peak, weights.sum(dim=-1), (weights * relative).sum(dim=-1), picked)


def row_statistics(logits: Tensor, targets: Tensor, *, vocab_start: int, real: int, temperature: float) -> Statistics:
    """Statistics of the rows of a chunk, by one Triton program a row.

    Args:
        logits: float32 `[n, columns]`, contiguous, not yet divided by the temperature.
        targets: int64 `[n]`, token ids; column c is the token `vocab_start + c`.
        real: how many columns are no padding, from the first on.
    """
    outputs = logits.new_empty(4, logits.shape[0])
    if logits.shape[0]:
        _triton().statistics[(logits.shape[0],)](
            logits, targets, *outputs, vocab_start, logits.shape[1], real, 1 / temperature,
            STEPS=-(-real // _BLOCK), BLOCK=_BLOCK, num_warps=16,
        )  # fmt: skip
    return Statistics(*outputs)


def logits_gradient_plain(
    logits: Tensor, targets: Tensor, peaks: Tensor, log_totals: Tensor, scales: Tensor, dtype: torch.dtype,
    *, vocab_start: int, real: int, temperature: float, entropy: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """See `logits_gradient`."""
    log_probabilities = (logits - peaks[:, None]) / temperature - log_totals[:, None]
    probabilities = log_probabilities.exp()
    probabilities[:, real:] = 0
    columns = torch.arange(logits.shape[1], device=logits.device) + vocab_start
    chosen = (columns == targets[:, None]) & (columns < vocab_start + real)
    factor = scales[:, None]
    if entropy is not None:
        factor = factor + entropy[1][:, None] * (log_probabilities + entropy[0][:, None])
    return (scales[:, None] * chosen.float() - probabilities * factor).to(dtype)


def logits_gradient(
    logits: Tensor, targets: Tensor, peaks: Tensor, log_totals: Tensor, scales: Tensor, dtype: torch.dtype,
    *, vocab_start: int, real: int, temperature: float, entropy: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """`scale * (one_hot(target) - softmax(logits / temperature))`, `[n, columns]`.

    Args:
        logits, targets, vocab_start, real: as for `row_statistics`.
        peaks, log_totals: float32 `[n]`, `Statistics.peak` and the logarithm of `total` over the whole vocabulary.
        scales: float32 `[n]`, the gradient of the log-prob over the temperature.
        dtype: of the result.
        entropy: float32 `[n]` each: the entropies, and their gradients over the temperature.
    """
    output = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    if output.numel():
        _triton().gradient[(logits.shape[0], -(-logits.shape[1] // _BLOCK))](
            logits, targets, peaks, log_totals, scales, *(entropy or (None, None)), output,
            vocab_start, logits.shape[1], real, 1 / temperature,
            HAS_ENTROPY=entropy is not None, BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
    return output


@cache
def _triton() -> Any:
    from pentad.kernels import logits_triton

    return logits_triton
