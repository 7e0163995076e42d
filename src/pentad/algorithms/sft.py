"""Supervised fine-tuning: the negative log-likelihood of the wanted responses."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from pentad.algorithms.protocol import Loss, Mean, Outputs
from pentad.algorithms.reduction import count, token_weights
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.algorithms.sft import SFTSettings
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory


class SFT:
    """The algorithm: nothing but its loss."""

    def __init__(self, settings: SFTSettings) -> None:
        self._settings = settings

    def admit(self, group: Sequence[Trajectory]) -> bool:
        return True

    def credit(self, batch: Batch) -> Batch:
        return batch

    def losses(self) -> Mapping[Role, Loss]:
        return {"policy": SFTLoss(self._settings)}


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
