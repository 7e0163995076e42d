"""How far the engines' log-probs of sampled tokens are from the trainer's, step by step.

Invariant: no batch is trained on whose divergence is above the bound of its precision. Both sides are the same weights
only where the batch was sampled by the weights that scored it; other batches are not judged.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pentad.samples.batch import Batch
from pentad.samples.trajectory import NOT_SAMPLED
from pentad.weights.proof import BOUNDS, SyncError, divergence

# A divergence that is so many times the first one, for so many steps in a row, is worth a word.
_GROWTH, _STEPS = 10.0, 3


def drift(batch: Batch) -> dict[str, float]:
    """Metrics of the difference; nothing where either side's log-probs are not known, or nothing is trained on."""
    if not {"rollout_logprobs", "old_logprobs"} <= batch.per_token.keys() or not bool(batch.loss_mask.any()):
        return {}
    engine: Tensor = batch.per_token["rollout_logprobs"][batch.loss_mask]
    trainer: Tensor = batch.per_token["old_logprobs"][batch.loss_mask]
    difference = (engine - trainer).abs()
    return {
        "rollout/logprob_diff_max": float(difference.max()),
        "rollout/logprob_diff_mean": float(difference.mean()),
        "rollout/kl": divergence(engine, trainer),
    }


class DriftWatch:
    """Refuses a divergence above a bound, and warns once of a large one and once of one that grows.

    Args:
        dtype: the coarser of the trainer's and the engines'.
        temperature: of sampling; one below 1 enlarges what rounding does to log-probs.
        warn: is told what is to be warned of.
    """

    def __init__(self, dtype: torch.dtype, temperature: float, warn: Callable[[str], None]) -> None:
        bounds, scale = BOUNDS[dtype], min(1.0, temperature) ** -2
        self._refused, self._warned = bounds.refused * scale, bounds.warned * scale
        self._dtype, self._warn = str(dtype).removeprefix("torch."), warn
        self._first: float | None = None
        self._grown = 0
        self._told: set[str] = set()

    def check(self, kl: float) -> None:
        """Judge `rollout/kl` of a step whose samples are of the weights that scored them.

        Raises:
            SyncError: engines and trainer do not compute the same.
        """
        if not kl <= self._refused:
            raise SyncError(
                f"the engines' log-probs of the tokens that they sampled are not the trainer's: divergence {kl:.3g} "
                f"nats a token (rollout/kl), more than {self._refused:.3g}, which rounding to {self._dtype} does not "
                "reach; likely the engine computes in lower precision than rollout.dtype says, changes weights or "
                "cache by itself, or draws tokens from another distribution than the one it reports"
            )
        if kl > self._warned:
            self._tell(
                "large",
                f"the engines' log-probs differ from the trainer's by more than is usual in {self._dtype}: "
                f"rollout/kl is {kl:.3g} nats a token, usual is below {self._warned:.3g}; the run is refused above "
                f"{self._refused:.3g}",
            )
        self._first = kl if self._first is None else self._first
        # Rounding that grows with sharper distributions, far below what is unusual, is of no interest.
        is_larger = kl > _GROWTH * self._first and kl > self._warned / _GROWTH
        self._grown = self._grown + 1 if is_larger else 0
        if self._grown >= _STEPS:
            self._tell(
                "growing",
                f"rollout/kl has been more than {_GROWTH:g} times its first value ({self._first:.3g} nats a "
                f"token) for {_STEPS} steps, and is {kl:.3g}: engines and trainer drift apart",
            )

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._warn(text)

    def state_dict(self) -> dict[str, Any]:
        """What is known of the steps so far."""
        return {"first": self._first, "grown": self._grown, "told": sorted(self._told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._first, self._grown, self._told = state["first"], state["grown"], set(state["told"])


def judged_drift(batch: Batch, version: int, watch: DriftWatch | None) -> dict[str, float]:
    """Metrics of how far engines and trainer are apart, which are judged where both had the same weights.

    Args:
        version: of the trainer's weights.

    Raises:
        SyncError: they are too far apart.
    """
    metrics = drift(batch)
    if metrics and watch is not None:
        versions = batch.per_sequence["weight_versions"]  # -1 where nothing was sampled
        if bool(((versions == version) | (versions == NOT_SAMPLED)).all()):
            watch.check(metrics["rollout/kl"])
    return metrics
