"""What every trainer speaks of: what one optimizer step did.

Invariant: nothing here knows a process, a backend or an algorithm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Published = Literal["all", "base", "adapters", "merged"]
"""What of a model is sent: all parameters; the frozen ones; the adapters; or weights with the adapters merged in."""


@dataclass(frozen=True)
class Trained:
    """What one optimizer step did.

    Attributes:
        metrics: over the whole minibatch.
        sample_ids: of the samples that were trained on.
        not_finite: Hugging Face names of tensors whose gradient was not finite; then nothing was updated, and
            `train/skipped_updates` is 1.
    """

    metrics: Mapping[str, float]
    sample_ids: tuple[int, ...]
    not_finite: tuple[str, ...] = ()
