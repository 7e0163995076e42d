"""The reward of a run, and those that evaluations have of their own.

Invariant: evaluations with the same reward of their own share its processes; what is wrong with one is said of the
setting that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pentad.config.schema.reward import RewardSettings
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.rewards.pool import RewardPool, check_rewards
from pentad.rewards.types import RewardItem, RewardResult


def own_reward(settings: RunSettings, name: str) -> RewardSettings | None:
    """`reward.*` as it holds for an evaluation with a reward of its own; None for one without."""
    one = settings.data.eval[name]
    if one.reward is None or not one.generates:
        return None
    return settings.reward.model_copy(update={"name": one.reward, "options": one.reward_options, "functions": {}})


def check_own_rewards(settings: RunSettings) -> Iterable[UserError]:
    """Own rewards of evaluations that cannot be right; none is imported."""
    for name in settings.data.eval:
        if (own := own_reward(settings, name)) is not None:
            try:
                check_rewards(own)
            except UserError as problem:
                yield of_evaluation(problem, name)


def of_evaluation(error: UserError, name: str) -> UserError:
    """What was said of `reward.name` and `reward.options`, of the settings of an evaluation."""

    def say(text: str) -> str:
        setting = f"data.eval.{name}.reward"
        return text.replace("reward.name", setting).replace("reward.options", f"{setting}_options")

    return UserError(say(error.cause), say(error.fix))


class OwnRewardPool(RewardPool):
    """A `RewardPool` whose errors name the setting of an evaluation.

    Args:
        name: of the evaluation.
    """

    def __init__(self, settings: RewardSettings, name: str, directory: Path | None = None) -> None:
        self._evaluation = name
        try:
            super().__init__(settings, directory)
        except UserError as error:
            raise of_evaluation(error, name) from error

    def check(self, items: Iterable[RewardItem]) -> None:
        try:
            super().check(items)
        except UserError as error:
            raise of_evaluation(error, self._evaluation) from error

    def check_results(self, results: Sequence[RewardResult]) -> None:
        try:
            super().check_results(results)
        except UserError as error:
            raise of_evaluation(error, self._evaluation) from error


class RewardPools:
    """All reward processes of a run.

    Args:
        settings: of the run.
        common: whether `reward.*` scores anything.

    Attributes:
        common: the pool of `reward.*`; None where it scores nothing.
        own: of each evaluation with a reward of its own.

    Raises:
        UserError: as of `RewardPool`.
    """

    def __init__(self, settings: RunSettings, *, common: bool) -> None:
        self.common: RewardPool | None = None
        self.own: dict[str, RewardPool] = {}
        made: list[tuple[RewardSettings, RewardPool]] = []
        try:
            if common:
                self.common = RewardPool(settings.reward)
            for name in settings.data.eval:
                if (own := own_reward(settings, name)) is None:
                    continue
                pool = next((pool for known, pool in made if known == own), None)
                if pool is None:
                    pool = OwnRewardPool(own, name)
                    made.append((own, pool))
                self.own[name] = pool
        except BaseException:
            self.close()
            raise

    @property
    def said(self) -> list[str]:
        """How rewards are called that were written for other projects; one line each."""
        lines = [] if self.common is None else list(self.common.said)
        for name, pool in self.own.items():
            lines += [line.replace("reward.name", f"data.eval.{name}.reward") for line in pool.said]
        return lines

    @property
    def failures(self) -> dict[str, int]:
        """Failures so far by kind."""
        found: dict[str, int] = {}
        for pool in self._all:
            for kind, count in pool.failures.items():
                found[kind] = found.get(kind, 0) + count
        return found

    @property
    def first_messages(self) -> dict[str, str]:
        """What the first failure of each kind said."""
        return {kind: message for pool in reversed(self._all) for kind, message in pool.first_messages.items()}

    def log_to(self, path: Path) -> None:
        """Append what rewards print to a file."""
        for pool in self._all:
            pool.log_to(path)

    def close(self) -> None:
        """End all workers."""
        for pool in self._all:
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _all(self) -> list[RewardPool]:
        common = [] if self.common is None else [self.common]
        return [*common, *dict.fromkeys(self.own.values())]
