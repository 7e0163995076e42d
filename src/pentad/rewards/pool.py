"""The processes that compute rewards.

Invariant: `score` gives one result for each item, in order, whatever the reward does: a call that hangs, crashes,
raises or returns no number costs that one sample its score and is counted; the first of each kind is told as soon as
it happens. After `close`, or after the death of this process, no worker is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from pentad.config.schema.reward import WITH_OPTIONS, RewardSettings
from pentad.errors import UserError
from pentad.rewards.builtin import BUILTIN
from pentad.rewards.components import Component, combined, components_of
from pentad.rewards.load import check_name
from pentad.rewards.rows import Named, check_row, rewards_of
from pentad.rewards.types import FAILURE_COUNTERS, Failure, RewardItem, RewardResult
from pentad.rewards.worker import Loaded, LoadRequest, ScoreRequest
from pentad.workers.capacity import check_capacity, default_workers
from pentad.workers.job import Job, Outcome, Preparation, PreparationError
from pentad.workers.pool import Limits, WorkerPool

LOAD_TIMEOUT_S = 120.0  # importing a reward; torch from a cold network disk takes most of that
_GRACE_S = 2.0  # for an asynchronous call to end itself at its own limit
_HANDLER = "pentad.rewards.worker:RewardHandler"

# Told of the first failure of a kind: what it was, and what it said.
Tell = Callable[[Failure, str], None]


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
        self._directory = (directory or Path.cwd()).resolve()
        self._loaded: dict[str, Loaded] = {}
        self._failures: dict[str, int] = dict.fromkeys(FAILURE_COUNTERS.values(), 0)
        self._first_messages: dict[str, str] = {}
        self._closed = False
        limits = Limits(call_s=settings.timeout_s, preparation_s=LOAD_TIMEOUT_S)
        self._pool = WorkerPool(_HANDLER, workers, limits, "the reward", self._loaded.__setitem__)
        try:
            for component in self._components:
                if component.name not in ("auto", *BUILTIN) or component.name in WITH_OPTIONS:
                    self._load(component)
        except BaseException:
            self.close()
            raise

    def _load(self, component: Component) -> None:
        try:
            self._run([Job(None, self._preparation((component, component.name)))])
        except UserError as error:
            raise renamed(error, component) from error

    @property
    def said(self) -> list[str]:
        """How rewards are called that were written for other projects; one line each."""
        lines = []
        for component in self._components:
            loaded = self._loaded.get(_key((component, component.name)))
            if loaded is not None and loaded.shown is not None:
                who, call = loaded.shown
                lines.append(f"{component.setting}={component.name} is called as {who} calls it: {call}")
        return lines

    @property
    def needs_tokens(self) -> bool:
        """Whether a reward is given the tokens of responses."""
        return any(loaded.tokens for loaded in self._loaded.values())

    @property
    def failures(self) -> dict[str, int]:
        """Failures so far by kind: timeouts, crashes, exceptions, bad_values."""
        return dict(self._failures)

    @property
    def first_messages(self) -> dict[str, str]:
        """What the first failure of each kind said; kinds that did not occur are absent."""
        return dict(self._first_messages)

    def check(self, items: Iterable[RewardItem]) -> None:
        """Refuse rows that could never be scored, before the run starts. Responses are not looked at.

        Raises:
            UserError: no reward belongs to a row, or it lacks a ground truth or a column that its reward needs.
        """
        for index, item in enumerate(items):
            row = item.id or f"row {index} of the data"
            check_row(item, row, rewards_of(self._components, item.data_source), self._requires)

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
        calls = self._calls(items)
        found: list[dict[Component, RewardResult]] = [{} for _ in items]
        again: list[tuple[Named, tuple[int, ...]]] = []

        def take(call: tuple[Named, tuple[int, ...]], outcome: Outcome) -> None:
            """Keep what a call gave; one for several samples that died is made again for each."""
            (component, _), indices = call
            if outcome.failure == "crash" and len(indices) > 1:
                again.extend((call[0], (index,)) for index in indices)
                return
            for index, result in zip(indices, self._results(outcome, len(indices)), strict=True):
                self._count(result, tell)
                found[index][component] = result

        self._run([self._job(items, *call) for call in calls], lambda number, outcome: take(calls[number], outcome))
        single, again = again, []
        self._run([self._job(items, *call) for call in single], lambda number, outcome: take(single[number], outcome))
        self._check_budget()
        # In the order of the settings, whichever was finished first.
        return [combined({c: results[c] for c in self._components if c in results}) for results in found]

    def _calls(self, items: Sequence[RewardItem]) -> list[tuple[Named, tuple[int, ...]]]:
        """Which reward is called for which items; in the order of the items."""
        calls: list[tuple[Named, tuple[int, ...]]] = []
        for _, group in groupby(range(len(items)), lambda index: (items[index].id, items[index].data_source)):
            indices = tuple(group)
            for named in rewards_of(self._components, items[indices[0]].data_source):
                loaded = self._loaded.get(_key(named))
                together = loaded is not None and loaded.together
                calls += [(named, indices)] if together else [(named, (index,)) for index in indices]
        return calls

    def _job(self, items: Sequence[RewardItem], named: Named, indices: tuple[int, ...]) -> Job:
        loaded, timeout_s = self._loaded.get(_key(named)), self._settings.timeout_s
        together = loaded is not None and loaded.together
        tokens = loaded is not None and loaded.tokens
        sent = tuple(items[i] if tokens else replace(items[i], response_ids=None) for i in indices)
        call_s = timeout_s + _GRACE_S if together else None
        return Job(ScoreRequest(_key(named), sent, timeout_s), self._preparation(named), call_s)

    def _check_budget(self) -> None:
        limit, failed = self._settings.max_failures, sum(self._failures.values())
        if limit is not None and failed > limit:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._failures.items() if count)
            first = next(iter(self._first_messages.values()))
            raise UserError(
                f"{failed} calls of the reward have failed ({kinds}), more than reward.max_failures={limit}; the first "
                f"said: {' '.join(first.split())}",
                "look at what the reward needs (a server, a file), or raise reward.max_failures",
            )

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

    def _count(self, result: RewardResult, tell: Tell | None) -> None:
        if result.failure is None:
            return
        kind = FAILURE_COUNTERS[result.failure]
        self._failures[kind] += 1
        if kind not in self._first_messages:
            self._first_messages[kind] = result.message
            if tell is not None:
                tell(result.failure, result.line)

    def _preparation(self, named: Named) -> Preparation:
        component, name = named
        return Preparation(_key(named), LoadRequest(_key(named), name, component.options, str(self._directory)))

    def _requires(self, named: Named) -> frozenset[str]:
        loaded = self._loaded.get(_key(named))
        return loaded.requires if loaded is not None else frozenset()

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

    def _results(self, outcome: Outcome, number: int) -> Sequence[RewardResult]:
        """What an outcome means for each of so many samples."""
        if outcome.failure is None:
            return outcome.value
        if outcome.failure == "timeout":
            limit = f"reward.timeout_s={self._settings.timeout_s:g}"
            return [RewardResult(0.0, "timeout", f"the reward took longer than {limit}")] * number
        return [RewardResult(0.0, "crash" if outcome.failure == "crash" else "exception", outcome.message)] * number


def _key(named: Named) -> str:
    component, name = named
    return f"{component.key}={name}" if component.key else name
