"""Supervised fine-tuning: the negative log-likelihood of the wanted responses."""

from collections.abc import Mapping

from torch import Tensor

from pentad.algorithms.given import Given
from pentad.algorithms.protocol import Mean, Outputs
from pentad.algorithms.reduction import count, token_weights
from pentad.config.schema.algorithms.sft import SFTSettings
from pentad.samples.batch import Batch


class SFTLoss:
    """Mean over tokens, or over sequences of their means."""

    reads: frozenset[str] = frozenset()
    differentiates_entropy = False

    def __init__(self, settings: SFTSettings) -> None:
        self._settings = settings

    def denominator(self, minibatch: Batch) -> float:
        return count(minibatch, self._settings.loss_mean)

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, Mapping[str, Mean]]:
        return -(outputs.logprobs * token_weights(microbatch, self._settings.loss_mean)).sum(), {}


class SFT(Given[SFTSettings]):
    """The algorithm."""

    loss = SFTLoss
