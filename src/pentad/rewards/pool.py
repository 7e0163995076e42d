"""The processes that compute rewards.

Invariant: `score` gives one result for each item, in order, whatever the reward does: a call that hangs, crashes,
raises or returns no number costs that one sample its score and is counted; the first of each kind is told as soon as
it happens. After `close`, or after the death of this process, no worker is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pentad.config.schema.reward import WITH_OPTIONS, RewardSettings
from pentad.errors import UserError
from pentad.rewards.builtin import BUILTIN
from pentad.rewards.calls import Call, Calls
from pentad.rewards.components import Component, combined, components_of
from pentad.rewards.load import check_name
from pentad.rewards.rows import check_row, rewards_of
from pentad.rewards.tally import Tally, Tell
from pentad.rewards.types import RewardItem, RewardResult
from pentad.workers.capacity import check_capacity, default_workers
from pentad.workers.job import Job, Outcome, PreparationError
from pentad.workers.pool import Limits, WorkerPool

LOAD_TIMEOUT_S = 120.0  # importing a reward; torch from a cold network disk takes most of that
_HANDLER = "pentad.rewards.worker:RewardHandler"


def check_rewards(settings: RewardSettings) -> None:
    """Refuse rewards that cannot be right, without importing any.

    Raises:
        UserError: an entry of `reward.functions` is not well-formed, a name is neither built in nor module:function, or
            a built-in reward is given options that it does not take.
    """
    for component in components_of(settings):
        try:
            check_name(component.name, component.options)
        except UserError as error:
            raise renamed(error, component) from None


def renamed(error: UserError, component: Component) -> UserError:
    """What was said of `reward.name` and `reward.options`, of the component."""
    if not component.key:
        return error

    def say(text: str) -> str:
        text = text.replace("reward.name", component.setting if component.short else f"{component.setting}.name")
        return text.replace("reward.options", f"{component.setting}.options")

    return UserError(say(error.cause), say(error.fix))


class RewardPool:
    """Scores responses in worker processes.

    Args:
        settings: `reward.*`.
        directory: where the modules of a `module:function` reward are looked for first; default the working
            directory.

    A `module:function` reward is loaded here once, so that what is wrong with it is said now.

    Raises:
        UserError: a reward or its options are wrong, a function cannot be loaded, or there are more
            `reward.workers` than the machine holds.
    """

    def __init__(self, settings: RewardSettings, directory: Path | None = None) -> None:
        check_rewards(settings)
        workers = settings.workers or default_workers()
        check_capacity(workers, "reward.workers")
        self._settings = settings
        self._components = components_of(settings)
        self._calls = Calls(self._components, (directory or Path.cwd()).resolve(), settings.timeout_s)
        self._tally = Tally(settings.max_failures)
        self._closed = False
        limits = Limits(call_s=settings.timeout_s, preparation_s=LOAD_TIMEOUT_S)
        self._pool = WorkerPool(_HANDLER, workers, limits, "the reward", self._calls.loaded.__setitem__)
        try:
            for component in self._components:
                if component.name not in ("auto", *BUILTIN) or component.name in WITH_OPTIONS:
                    self._load(component)
        except BaseException:
            self.close()
            raise

    def _load(self, component: Component) -> None:
        try:
            self._run([Job(None, self._calls.preparation((component, component.name)))])
        except UserError as error:
            raise renamed(error, component) from error

    @property
    def said(self) -> list[str]:
        """How rewards are called that were written for other projects; one line each."""
        return self._calls.said

    @property
    def needs_tokens(self) -> bool:
        """Whether a reward is given the tokens of responses."""
        return any(loaded.tokens for loaded in self._calls.loaded.values())

    @property
    def failures(self) -> dict[str, int]:
        """Failures so far by kind: timeouts, crashes, exceptions, bad_values."""
        return dict(self._tally.counts)

    @property
    def first_messages(self) -> dict[str, str]:
        """What the first failure of each kind said; kinds that did not occur are absent."""
        return dict(self._tally.first_messages)

    def check(self, items: Iterable[RewardItem]) -> None:
        """Refuse rows that could never be scored, before the run starts. Responses are not looked at.

        Raises:
            UserError: no reward belongs to a row, or it lacks a ground truth or a column that its reward needs.
        """
        for index, item in enumerate(items):
            row = item.id or f"row {index} of the data"
            check_row(item, row, rewards_of(self._components, item.data_source), self._calls.requires)

    def score(self, items: Sequence[RewardItem], tell: Tell | None = None) -> list[RewardResult]:
        """One result for each item, in order.

        Args:
            items: responses to one prompt one after the other; a reward for batches is given those of one `id`.
            tell: called with the first failure of each kind in the life of the pool, when it happens.

        Raises:
            UserError: no reward belongs to an item, a reward can no longer be loaded, or more calls than
                `reward.max_failures` have failed.
        """
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        found: list[dict[Component, RewardResult]] = [{} for _ in items]
        again: list[Call] = []

        def take(call: Call, outcome: Outcome) -> None:
            """Keep what a call gave; one for several samples that died is made again for each."""
            if outcome.failure == "crash" and len(call.indices) > 1:
                again.extend(call.singly())
                return
            for index, result in zip(call.indices, self._calls.results(outcome, call), strict=True):
                self._tally.count(result, tell)
                found[index][call.reward[0]] = result

        calls = self._calls.of(items)
        while calls:
            jobs, current = [self._calls.job(items, call) for call in calls], calls
            self._run(jobs, lambda number, outcome, current=current: take(current[number], outcome))
            calls, again = again, []
        self._tally.check()
        # In the order of the settings, whichever was finished first.
        return [combined({c: results[c] for c in self._components if c in results}) for results in found]

    def check_results(self, results: Sequence[RewardResult]) -> None:
        """Refuse results of which none is a score: a reward that never works has nothing to teach.

        Raises:
            UserError: every call failed.
        """
        if not results or any(result.failure is None for result in results):
            return
        first = results[0]
        if all(result.failure == "timeout" for result in results):
            fix = f"raise reward.timeout_s (now {self._settings.timeout_s:g}), or make the reward faster"
        else:
            named = "reward.functions" if self._settings.functions else f"reward.name={self._settings.name}"
            fix = f"change {named}, or set {named.partition('=')[0]} to one that suits the data"
        raise UserError(
            f"all {len(results)} calls of the reward failed; the first ({first.failure}): {first.line}", fix
        )

    def log_to(self, path: Path) -> None:
        """Append what rewards print to a file, from the first that they printed."""
        self._pool.log.open(path)

    def close(self) -> None:
        """End all workers; may be called again."""
        self._closed = True
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self, jobs: Sequence[Job], on_outcome: Callable[[int, Outcome], None] = lambda number, outcome: None
    ) -> list[Outcome]:
        try:
            return self._pool.run(jobs, on_outcome)
        except PreparationError as error:
            how = f"ended the process ({error})" if error.failure == "crash" else f"took {error}"
            raise UserError(
                f"reward.name={error.preparation.request.name}: importing it {how}",
                "look at what the module does when it is imported",
            ) from error
