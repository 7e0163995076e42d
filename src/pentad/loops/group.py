"""What is sampled for one prompt."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pentad.data.prompts import EncodedPrompts
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
        index: of the row among the prompts.
    """

    row: PromptRow
    prompt: Tensor
    trajectories: tuple[Trajectory, ...]
    results: tuple[RewardResult, ...]
    finish_reasons: tuple[FinishReason, ...]
    index: int = -1

    def plain(self) -> dict[str, Any]:
        """All of it but what the data has, as plain values and tensors; `from_plain` makes the group again."""
        return {
            "index": self.index,
            "trajectories": [{**vars(one), "extras": dict(one.extras)} for one in self.trajectories],
            "results": [{**asdict(one), "metrics": dict(one.metrics)} for one in self.results],
            "finish_reasons": list(self.finish_reasons),
        }

    @staticmethod
    def from_plain(state: Mapping[str, Any], prompts: EncodedPrompts) -> "Group":
        """The group that `plain` describes."""
        return Group(
            prompts.rows[state["index"]],
            prompts.tokens[state["index"]],
            tuple(Trajectory(**one) for one in state["trajectories"]),
            tuple(RewardResult(**one) for one in state["results"]),
            tuple(state["finish_reasons"]),
            state["index"],
        )
