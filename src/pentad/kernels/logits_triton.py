"""Triton kernels over a chunk of logits; `pentad.kernels.logits` says what they compute. Importing this needs Triton.

Invariant: each logit is read once, each gradient written once. Sums are float32, relative to the row's maximum.
"""

import triton
from triton import language as tl


@triton.jit
def statistics(
    logits, targets, peaks, totals, weighted, picked, vocab_start, rows_of_weight, real, inverse_temperature,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row. `real`: this rank's columns that are no padding."""
    row = tl.program_id(0).to(tl.int64)
    base = logits + row * rows_of_weight
    peak = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    moment = tl.zeros([BLOCK], dtype=tl.float32)
    # Every lane keeps sums relative to a maximum of its own; they are joined at the end.
    for step in range(0, STEPS):
        columns = step * BLOCK + tl.arange(0, BLOCK)
        inside = columns < real
        value = tl.load(base + columns, mask=inside, other=float("-inf"))
        higher = tl.maximum(peak, value)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        shift = tl.where(peak == float("-inf"), 0.0, peak - safe) * inverse_temperature
        decay = tl.where(peak == float("-inf"), 0.0, tl.exp(shift))
        new = tl.where(inside, value - safe, 0.0) * inverse_temperature
        weight = tl.where(inside, tl.exp(new), 0.0)
        moment = decay * (moment + total * shift) + weight * new
        total = decay * total + weight
        peak = higher
    highest = tl.max(peak, axis=0)
    safest = tl.where(highest == float("-inf"), 0.0, highest)
    shift = tl.where(peak == float("-inf"), 0.0, peak - safest) * inverse_temperature
    decay = tl.where(peak == float("-inf"), 0.0, tl.exp(shift))
    tl.store(peaks + row, highest)
    tl.store(totals + row, tl.sum(total * decay, axis=0))
    tl.store(weighted + row, tl.sum(decay * (moment + total * shift), axis=0))
    target = tl.load(targets + row) - vocab_start
    mine = (target >= 0) & (target < real)
    chosen = tl.load(base + target, mask=mine, other=0.0)
    tl.store(picked + row, chosen)


@triton.jit
def gradient(
    logits, targets, peaks, log_totals, scales, entropies, entropy_scales, output,
    vocab_start, rows_of_weight, real, inverse_temperature,
    HAS_ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, blocks of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < real
    value = tl.load(logits + row * rows_of_weight + columns, mask=inside, other=float("-inf"))
    scale = tl.load(scales + row)
    target = tl.load(targets + row) - vocab_start
    relative = (value - tl.load(peaks + row)) * inverse_temperature
    log_probability = relative - tl.load(log_totals + row)
    probability = tl.where(inside, tl.exp(log_probability), 0.0)
    factor = scale
    if HAS_ENTROPY:
        # The gradient of the entropy H is -p (log p + H); where p is 0, so is it.
        surprise = tl.where(inside, log_probability, 0.0) + tl.load(entropies + row)
        factor += tl.load(entropy_scales + row) * surprise
    result = tl.where(columns == target, scale, 0.0) - probability * factor
    tl.store(output + row * rows_of_weight + columns, result.to(output.dtype.element_ty), mask=columns < rows_of_weight)
