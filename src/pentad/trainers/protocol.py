"""What every trainer speaks of: the roles of models, and what one optimizer step did.

Invariant: nothing here knows a process, a backend or an algorithm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["policy", "reference", "critic"]
"""The name of a model in the trainer. The policy is trained and generates; the reference is the policy as it began."""


@dataclass(frozen=True)
class Trained:
    """What one optimizer step did.

    Attributes:
        metrics: over the whole minibatch.
        sample_ids: of the samples that were trained on.
    """

    metrics: Mapping[str, float]
    sample_ids: tuple[int, ...]
