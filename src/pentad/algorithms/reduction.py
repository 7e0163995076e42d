"""How per-token losses are weighed before they are summed.

Invariant: weights depend on a token's own sequence only, never on its neighbours in a microbatch.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pentad.samples.batch import Batch

LossMean = Literal["token", "sequence", "constant"]


def token_weights(batch: Batch, mean: LossMean) -> Tensor:
    """float32 `[t]`: 1 for each token with loss, or (`sequence`) 1 over their number in its sequence; 0 elsewhere."""
    mask = batch.loss_mask.to(torch.float32)
    if mean != "sequence":
        return mask
    sequence = batch.sequence_ids()
    counts = torch.zeros(batch.num_sequences, device=mask.device).index_add_(0, sequence, mask)
    return mask / counts.clamp(min=1)[sequence]


def count(batch: Batch, mean: LossMean, max_response_tokens: int | None = None) -> float:
    """The denominator over a whole minibatch; at least 1.

    `token`: tokens with loss. `sequence`: sequences that are trained on. `constant`: these times the longest response.

    A sequence that was left out, because its reward failed or the token limit ended it, is not counted.
    """
    if mean == "token":
        return max(1, int(batch.loss_mask.sum()))
    kept = trained_sequences(batch)
    sequences = max(1, batch.num_sequences if kept is None else int(kept.sum()))
    if mean == "sequence":
        return sequences
    if max_response_tokens is None:
        raise ValueError("the mean `constant` needs the length of the longest response")
    return sequences * max_response_tokens


def trained_sequences(batch: Batch) -> Tensor | None:
    """bool `[S]`: which sequences are trained on; None if all are."""
    return batch.per_sequence.get("trained", batch.per_sequence.get("scored"))


def without_truncated(batch: Batch) -> Batch:
    """The batch without loss on sequences that the token limit ended; `trained`, bool `[S]`, is False for them."""
    kept, scored = ~batch.per_sequence["truncated"], batch.per_sequence["scored"]
    batch = replace(batch, loss_mask=batch.loss_mask & kept[batch.sequence_ids()])
    return batch.with_per_sequence("trained", scored & kept)


def corrected(per_token: Tensor, batch: Batch) -> Tensor:
    """A policy-gradient term, `[t]`, times the weight of each token: how much likelier the policy before the step was
    to sample it than the one that did. `importance_weights`, float32 `[t]`, constant; all 1 where there are none."""
    weights = batch.per_token.get("importance_weights")
    return per_token if weights is None else per_token * weights


def spread_over_tokens(values: Tensor, batch: Batch) -> Tensor:
    """One value a sequence `[S]` to one a token `[T]`; 0 outside the loss mask."""
    return values[batch.sequence_ids()] * batch.loss_mask


def sum_over_sequences(values: Tensor, batch: Batch) -> Tensor:
    """One value a token `[T]` to one a sequence `[S]`: the sum over the loss mask."""
    return values.new_zeros(batch.num_sequences).index_add(0, batch.sequence_ids(), values * batch.loss_mask)


def mean_over_sequences(values: Tensor, batch: Batch) -> Tensor:
    """One value a token `[T]` to one a sequence `[S]`: the mean over the loss mask; 0 for a sequence without loss."""
    counts = sum_over_sequences(torch.ones_like(values), batch)
    return sum_over_sequences(values, batch) / counts.clamp(min=1)


def at_last_token(values: Tensor, batch: Batch) -> Tensor:
    """One value a sequence `[S]` to one a token `[T]`: at the last token of the loss mask, 0 elsewhere."""
    places = batch.loss_mask.nonzero()[:, 0]
    sequence = batch.sequence_ids()[places]
    is_last = torch.ones_like(places, dtype=torch.bool)
    is_last[:-1] = sequence[1:] != sequence[:-1]
    spread = values.new_zeros(batch.num_tokens)
    spread[places[is_last]] = values[sequence[is_last]]
    return spread
