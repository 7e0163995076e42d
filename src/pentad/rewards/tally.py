"""What has failed so far.

Invariant: every failed call is counted once, and the first of each kind is told when it happens.
"""

from __future__ import annotations

from collections.abc import Callable

from pentad.errors import UserError
from pentad.rewards.types import FAILURE_COUNTERS, Failure, RewardResult

# Told of the first failure of a kind: what it was, and what it said.
Tell = Callable[[Failure, str], None]


class Tally:
    """Counts failures.

    Args:
        limit: `reward.max_failures`.

    Attributes:
        counts: failures so far by kind: timeouts, crashes, exceptions, bad_values.
        first_messages: what the first failure of each kind said; kinds that did not occur are absent.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.counts: dict[str, int] = dict.fromkeys(FAILURE_COUNTERS.values(), 0)
        self.first_messages: dict[str, str] = {}

    def count(self, result: RewardResult, tell: Tell | None) -> None:
        """Count the result of a call, if it failed."""
        if result.failure is None:
            return
        kind = FAILURE_COUNTERS[result.failure]
        self.counts[kind] += 1
        if kind not in self.first_messages:
            self.first_messages[kind] = result.message
            if tell is not None:
                tell(result.failure, result.line)

    def check(self) -> None:
        """Refuse more failures than the limit.

        Raises:
            UserError: there are.
        """
        failed = sum(self.counts.values())
        if self._limit is None or failed <= self._limit:
            return
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)
        first = " ".join(next(iter(self.first_messages.values())).split())
        raise UserError(
            f"{failed} calls of the reward have failed ({kinds}), more than reward.max_failures={self._limit}; the "
            f"first said: {first}",
            "look at what the reward needs (a server, a file), or raise reward.max_failures",
        )
