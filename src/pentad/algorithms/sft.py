"""Supervised fine-tuning: the negative log-likelihood of the wanted responses."""

from typing import Literal

from torch import Tensor

from pentad.algorithms.reduction import token_weights
from pentad.config.schema.algorithm import AlgorithmSettings
from pentad.samples.batch import Batch


class SFTLoss:
    """Mean over tokens, or over sequences of their means."""

    def __init__(self, settings: AlgorithmSettings) -> None:
        self.normalizer: Literal["tokens", "sequences"] = "tokens" if settings.loss_mean == "token" else "sequences"

    def __call__(self, logprobs: Tensor, microbatch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -(logprobs * token_weights(microbatch, self.normalizer)).sum(), {}
