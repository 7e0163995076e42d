"""How per-token losses are weighed before they are summed.

Invariant: weights depend on a token's own sequence only, never on its neighbours in a microbatch.
"""

from typing import Literal

import torch
from torch import Tensor

from pentad.samples.batch import Batch

LossMean = Literal["token", "sequence"]


def token_weights(batch: Batch, mean: LossMean) -> Tensor:
    """float32 `[t]`: 1 for each token with loss, or 1 over their number in its sequence; 0 elsewhere."""
    mask = batch.loss_mask.to(torch.float32)
    if mean == "token":
        return mask
    sequence = batch.sequence_ids()
    counts = torch.zeros(batch.num_sequences, device=mask.device).index_add_(0, sequence, mask)
    return mask / counts.clamp(min=1)[sequence]


def count(batch: Batch, mean: LossMean) -> float:
    """The denominator over a whole minibatch: tokens with loss, or sequences that are trained on; at least 1.

    A sequence that was dropped, because its reward failed, is not counted.
    """
    if mean == "token":
        return max(1, int(batch.loss_mask.sum()))
    scored = batch.per_sequence.get("scored")
    return max(1, batch.num_sequences if scored is None else int(scored.sum()))


def spread_over_tokens(values: Tensor, batch: Batch) -> Tensor:
    """One value a sequence `[S]` to one a token `[T]`; 0 outside the loss mask."""
    return values[batch.sequence_ids()] * batch.loss_mask


def sum_over_sequences(values: Tensor, batch: Batch) -> Tensor:
    """One value a token `[T]` to one a sequence `[S]`: the sum over the loss mask."""
    return values.new_zeros(batch.num_sequences).index_add(0, batch.sequence_ids(), values * batch.loss_mask)
