"""What becomes of a sample whose reward call failed.

Invariant: a trajectory with a reward is one that the reward gave, or 0 where `reward.on_failure` asks for that.
"""

from __future__ import annotations

from dataclasses import replace

from pentad.config.schema.reward import OnFailure
from pentad.rewards.types import RewardResult
from pentad.samples.trajectory import Trajectory


def is_dropped(result: RewardResult, on_failure: OnFailure) -> bool:
    """Whether the sample is left out of training. A score of 0 that the reward gave is a score."""
    return result.failure is not None and on_failure == "drop"


def with_reward(trajectory: Trajectory, result: RewardResult, on_failure: OnFailure) -> Trajectory:
    """The trajectory with its reward; of status `failed`, and without a reward, where it is left out of training."""
    if is_dropped(result, on_failure):
        return replace(trajectory, reward=0.0, status="failed")
    return replace(trajectory, reward=result.score)
