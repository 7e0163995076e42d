"""What is sampled for one prompt."""

from dataclasses import dataclass

from torch import Tensor

from pentad.data.rows import PromptRow
from pentad.rewards.types import RewardResult
from pentad.samples.completion import FinishReason
from pentad.samples.trajectory import Trajectory


@dataclass(frozen=True)
class Group:
    """The trajectories of one prompt, with their rewards.

    Attributes:
        row: the prompt's row.
        prompt: int64 `[P]`.
        trajectories: the samples.
        results: the reward of each.
        finish_reasons: why each response ended.
    """

    row: PromptRow
    prompt: Tensor
    trajectories: tuple[Trajectory, ...]
    results: tuple[RewardResult, ...]
    finish_reasons: tuple[FinishReason, ...]
