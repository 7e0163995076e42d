"""What goes to a reward and what comes back.

Invariant: a `RewardResult` has a finite score; where the reward failed it is 0 and says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Failure = Literal["timeout", "crash", "exception", "bad_value"]

FAILURE_COUNTERS: Mapping[Failure, str] = {
    "timeout": "timeouts",
    "crash": "crashes",
    "exception": "exceptions",
    "bad_value": "bad_values",
}


@dataclass(frozen=True)
class RewardItem:
    """One response to score.

    Args:
        prompt: text that the response answers.
        response: decoded response, without the end-of-turn token.
        ground_truth: what the data says is right; None where it says nothing.
        data_source: chooses the reward when `reward.name` is auto.
        extra: columns of the row, as the data has them.
        id: says where the row is, for messages; responses of one id in a row answer the same prompt.
        messages: the prompt as a conversation; None where the data has text.
        response_ids: tokens of the response, where they are known.
    """

    prompt: str
    response: str
    ground_truth: Any = None
    data_source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    messages: tuple[Mapping[str, str], ...] | None = None
    response_ids: tuple[int, ...] | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """What a reward may ask for by name: the columns of the row, `extra_info` among them, and what is in it.

        Where a column and an entry of `extra_info` have the same name, it means the column.
        """
        info = self.extra.get("extra_info")
        source = {"data_source": self.data_source} if self.data_source else {}
        return {**(info if isinstance(info, Mapping) else {}), **source, **self.extra}

    @property
    def names(self) -> str:
        """The names in `columns`, in words: `level, extra_info (split, index)`."""
        info = self.extra.get("extra_info")
        names = [*(["data_source"] if self.data_source and "data_source" not in self.extra else []), *self.extra]
        if isinstance(info, Mapping) and info:
            names[names.index("extra_info")] = f"extra_info ({', '.join(info)})"
        return ", ".join(names) or "none"


@dataclass(frozen=True)
class RewardResult:
    """The score of one response.

    Args:
        score: finite; 0 when `failure` is set.
        failure: how the reward failed, or None.
        message: what it said when it failed.
        metrics: the other finite numbers of a reward that returns a dict.
        applies: False where the reward says by None that it has no opinion of this sample, as TRL's may.
        components: of several rewards, the score of each, before its weight; those that do not apply are absent.
        seconds: how long the call took; of a call for several samples, its time over their number.
    """

    score: float
    failure: Failure | None = None
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    applies: bool = True
    components: Mapping[str, float] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    @property
    def line(self) -> str:
        """The message on one line."""
        return " ".join(self.message.split())
