"""The loss of a critic."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pentad.algorithms.protocol import Mean, Outputs
from pentad.algorithms.reduction import count, token_weights
from pentad.config.schema.algorithms.ppo import PPOSettings
from pentad.samples.batch import Batch


class ValueLoss:
    """Half the squared distance to the return, the mean over tokens.

    With `value_clip` it is the larger of the distances of the value and of the value bounded to old value +-
    `value_clip`: https://arxiv.org/abs/2005.12729, section 2.
    """

    reads = frozenset({"values", "returns"})
    differentiates_entropy = False

    def __init__(self, settings: PPOSettings) -> None:
        self._settings = settings

    def denominator(self, minibatch: Batch) -> float:
        return count(minibatch, "token")

    def __call__(self, outputs: Outputs, microbatch: Batch) -> tuple[Tensor, Mapping[str, Mean]]:
        if outputs.values is None:
            raise ValueError("the loss of a critic needs values")
        clip, values, mask = self._settings.value_clip, outputs.values, microbatch.loss_mask
        old, returns = microbatch.per_token["values"], microbatch.per_token["returns"]
        error = (values - returns) ** 2
        tokens = mask.sum()
        metrics = {"critic/value_mean": Mean((values.detach() * mask).sum(), tokens)}
        if clip is not None:
            bounded = old + (values - old).clamp(-clip, clip)
            bounded_error = (bounded - returns) ** 2
            clipped = bounded_error > error
            metrics["critic/clip_fraction"] = Mean((clipped & mask).sum(), tokens)
            error = torch.maximum(error, bounded_error)
        return 0.5 * (error * token_weights(microbatch, "token")).sum(), metrics
