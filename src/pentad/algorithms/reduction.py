"""How per-token losses are weighed before they are summed.

Invariant: weights depend on a token's own sequence only, never on its neighbours in a microbatch.
"""

from typing import Literal

import torch
from torch import Tensor

from pentad.samples.batch import Batch


def token_weights(batch: Batch, normalizer: Literal["tokens", "sequences"]) -> Tensor:
    """float32 `[t]`: 1 for each token with loss, or 1 over their number in its sequence; 0 elsewhere."""
    mask = batch.loss_mask.to(torch.float32)
    if normalizer == "tokens":
        return mask
    sequence = batch.sequence_ids()
    counts = torch.zeros(batch.num_sequences, device=mask.device).index_add_(0, sequence, mask)
    return mask / counts.clamp(min=1)[sequence]


def count(batch: Batch, normalizer: Literal["tokens", "sequences"]) -> int:
    """The denominator over a whole minibatch: tokens with loss, or sequences."""
    return int(batch.loss_mask.sum()) if normalizer == "tokens" else batch.num_sequences
