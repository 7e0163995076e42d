"""Which calls score which samples, and what comes of them.

Invariant: every sample is in exactly one call of each of its rewards; a call for several is for responses to one
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from pentad.rewards.components import Component
from pentad.rewards.rows import Named, rewards_of
from pentad.rewards.types import RewardItem, RewardResult
from pentad.rewards.worker import Loaded, LoadRequest, ScoreRequest
from pentad.workers.job import Job, Outcome, Preparation

_GRACE_S = 2.0  # for an asynchronous call to end itself at its own limit


@dataclass(frozen=True)
class Call:
    """One call of a reward: which, and the indices of its samples."""

    reward: Named
    indices: tuple[int, ...]

    def singly(self) -> list[Call]:
        """A call for each of the samples."""
        return [Call(self.reward, (index,)) for index in self.indices]


class Calls:
    """Makes calls of the components of a reward.

    Args:
        directory: where modules of rewards are looked for first.
        timeout_s: `reward.timeout_s`.

    Attributes:
        loaded: what is known of the rewards that were loaded, by `key`.
    """

    def __init__(self, components: Sequence[Component], directory: Path, timeout_s: float) -> None:
        self._components, self._directory, self._timeout_s = components, directory, timeout_s
        self.loaded: dict[str, Loaded] = {}

    @staticmethod
    def key(reward: Named) -> str:
        """Names a reward with its options."""
        component, name = reward
        return f"{component.key}={name}" if component.key else name

    @property
    def said(self) -> list[str]:
        """How rewards are called that were written for other projects; one line each."""
        lines = []
        for component in self._components:
            loaded = self.loaded.get(self.key((component, component.name)))
            if loaded is not None and loaded.shown is not None:
                who, call = loaded.shown
                lines.append(f"{component.setting}={component.name} is called as {who} calls it: {call}")
        return lines

    def requires(self, reward: Named) -> frozenset[str]:
        """Columns that a reward asks for; none of one that was not loaded yet, which is built in."""
        loaded = self.loaded.get(self.key(reward))
        return loaded.requires if loaded is not None else frozenset()

    def of(self, items: Sequence[RewardItem]) -> list[Call]:
        """The calls that score items, in their order.

        Raises:
            UserError: no reward is for an item.
        """
        calls: list[Call] = []
        for _, group in groupby(range(len(items)), lambda index: (items[index].id, items[index].data_source)):
            indices = tuple(group)
            for reward in rewards_of(self._components, items[indices[0]].data_source):
                loaded, call = self.loaded.get(self.key(reward)), Call(reward, indices)
                calls += [call] if loaded is not None and loaded.together else call.singly()
        return calls

    def job(self, items: Sequence[RewardItem], call: Call) -> Job:
        """What a worker is asked to do."""
        key = self.key(call.reward)
        loaded = self.loaded.get(key)
        tokens = loaded is not None and loaded.tokens
        sent = tuple(items[i] if tokens else replace(items[i], response_ids=None) for i in call.indices)
        call_s = self._timeout_s + _GRACE_S if loaded is not None and loaded.together else None
        return Job(ScoreRequest(key, sent, self._timeout_s), self.preparation(call.reward), call_s)

    def preparation(self, reward: Named) -> Preparation:
        """The loading of a reward."""
        component, name = reward
        key = self.key(reward)
        return Preparation(key, LoadRequest(key, name, component.options, str(self._directory)))

    def results(self, outcome: Outcome, call: Call) -> Sequence[RewardResult]:
        """What an outcome means for each sample of a call."""
        if outcome.failure is None:
            return outcome.value
        number = len(call.indices)
        if outcome.failure == "timeout":
            limit = f"reward.timeout_s={self._timeout_s:g}"
            return [RewardResult(0.0, "timeout", f"the reward took longer than {limit}")] * number
        return [RewardResult(0.0, "crash" if outcome.failure == "crash" else "exception", outcome.message)] * number
