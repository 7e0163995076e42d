"""Importance weights: three policies are three things.

The behaviour policy sampled a token (`rollout_logprobs`: older weights, and the engine's arithmetic). The proximal
policy is the trainer's at the beginning of the batch (`old_logprobs`). The current policy is the one that is being
trained. A clipped loss compares current and proximal; the weight here is proximal over behaviour, so that the gradient
is that of samples of the proximal policy (AReaL, https://arxiv.org/abs/2505.24298, equation 5). Truncated weights have
less variance and a bias (https://fengyao.notion.site/off-policy-rl); masks leave the worst out.

Invariant: weights carry no gradient, and are 0 outside the loss mask.
"""

import torch
from torch import Tensor

from pentad.algorithms.kl import clamped
from pentad.config.schema.algorithms.correction import CorrectionSettings
from pentad.samples.batch import Batch


def importance_weights(batch: Batch, settings: CorrectionSettings) -> tuple[Batch, dict[str, float]]:
    """The batch with `per_token["importance_weights"]`, float32 `[T]`, and metrics.

    Args:
        batch: with `rollout_logprobs` and `old_logprobs`.
        settings: `level` is `token` or `sequence`.

    Returns:
        the batch, and `importance/mean`, `importance/max`, `importance/bounded_fraction` (weights that the rule
        changed) and `importance/ess`: `(sum w)^2 / (n sum w^2)`, the share of the samples that the weighted ones are
        worth.
    """
    mask = batch.loss_mask
    log_ratio = (batch.per_token["old_logprobs"] - batch.per_token["rollout_logprobs"]) * mask
    if settings.level == "sequence":
        sequence = batch.sequence_ids()
        sums = torch.zeros(batch.num_sequences, dtype=torch.float64).index_add_(0, sequence, log_ratio.double())
        ratios = clamped(sums).exp()
        trained = torch.zeros(batch.num_sequences).index_add_(0, sequence, mask.float()) > 0
        weights, outside = _bounded(ratios, settings)
        metrics = _metrics(ratios[trained], outside[trained])
        weights = weights[sequence]
    else:
        ratios = clamped(log_ratio).exp()
        weights, outside = _bounded(ratios, settings)
        metrics = _metrics(ratios[mask], outside[mask])
    return batch.with_per_token("importance_weights", (weights * mask).float()), metrics


def _bounded(ratios: Tensor, settings: CorrectionSettings) -> tuple[Tensor, Tensor]:
    """The weights, and which of them the rule changed."""
    if settings.rule == "truncate":
        return ratios.clamp(max=settings.high), ratios > settings.high
    outside = (ratios > settings.high) | (ratios < settings.low)
    return ratios.masked_fill(outside, 0.0), outside


def _metrics(ratios: Tensor, outside: Tensor) -> dict[str, float]:
    if not len(ratios):
        return {}
    ratios = ratios.double()
    return {
        "importance/mean": float(ratios.mean()),
        "importance/max": float(ratios.max()),
        "importance/bounded_fraction": float(outside.double().mean()),
        "importance/ess": float(ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum())),
    }
