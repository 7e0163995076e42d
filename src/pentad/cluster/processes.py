"""All processes of a run, and waiting for what they were asked.

Invariant: waiting ends when all that was asked has been answered, or with the first cause as soon as any process of
the run has failed or the deadline has passed; it never waits for a process whose peer is gone. Nothing here blocks the
event loop, and a wait that is cancelled leaves nothing behind in it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from pentad.cluster.deaths import Deaths
from pentad.cluster.failure import first_cause
from pentad.record.outcome import RunFailedError
from pentad.record.timeline import Timeline

# How often a call's progress is asked for.
_REPORT_S = 0.2
# After the first failure, others may report what really happened before it is failed.
_GRACE_S = 2.0
# No spans: engines have those of generation from `Replica`, the others are no part of steps or beside other work.
_UNRECORDED = frozenset({"rollout", "start-up", "writing a checkpoint"})

Report = Callable[[], Awaitable[None]]


class DeadlineError(RunFailedError):
    """Some processes did not answer in time.

    Args:
        phase: what they should have done.
        activities: what each was at, by name.
        setting: that says how long.

    Attributes:
        names: of these processes.
    """

    def __init__(
        self,
        names: Sequence[str],
        phase: str,
        deadline_s: float,
        activities: Mapping[str, str],
        setting: str = "trainer.deadline_s",
    ) -> None:
        said = ", ".join(f"{name} ({activities[name]})" if activities.get(name) else name for name in names)
        super().__init__(f"{said} did not finish {phase} within {deadline_s:g} s ({setting})")
        self.names = tuple(names)


@dataclass(frozen=True)
class ProcessInfo:
    """What a process says of itself.

    Attributes:
        actor_id: Ray's id of it, in hexadecimal digits.
        machine: Ray's id of the machine that it is on.
        host: address at which other machines reach that machine.
        log: the file that takes its output, on its own machine.
    """

    pid: int
    actor_id: str
    machine: str
    host: str
    log: str


@dataclass(frozen=True)
class Call:
    """Answers on their way, one of each process, in order of rank.

    Attributes:
        refs: Ray's references to the answers.
        names: of the processes.
        abandon: a wait that is cancelled takes the call back.
        began: when it was made, by `time.monotonic`.
    """

    refs: tuple[Any, ...]
    names: tuple[str, ...]
    abandon: bool = False
    began: float = field(default_factory=time.monotonic)


class Processes:
    """All processes of a run. Whichever of them is waited for, the death of any is noticed.

    Attributes:
        infos: what each said of itself, by name; filled by `started`.
        timeline: takes down from when to when each process was at what it was asked.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.infos: dict[str, ProcessInfo] = {}
        self._actors: dict[str, ActorHandle] = {}
        self._deaths = Deaths()

    @property
    def actors(self) -> Mapping[str, ActorHandle]:
        """All processes by name."""
        return self._actors

    def add(self, name: str, actor: ActorHandle, *, replaceable: bool = False) -> None:
        """Take a process in. Its class has the methods of `pentad.cluster.process.Process`.

        Args:
            replaceable: the run can go on without it; its death fails only the calls to it.
        """
        self._actors[name] = actor
        self._deaths.watch(name, actor, replaceable=replaceable)

    def end(self, name: str) -> None:
        """End a replaceable process, dead or alive; `add` then takes another in under its name."""
        self._deaths.forget(name)
        ray.kill(self._actors.pop(name))

    def is_lost(self, name: str, error: BaseException) -> bool:
        """Whether an error of a wait came from this process: it died, or is one of those that were late."""
        if isinstance(error, DeadlineError):
            return name in error.names
        return name in self._deaths or getattr(error, "died", None) == name

    async def started(self, deadline_s: float) -> None:
        """Wait until all processes run."""
        call = Call(tuple(actor.info.remote() for actor in self._actors.values()), tuple(self._actors))
        self.infos = dict(zip(call.names, (await self.wait([call], "start-up", deadline_s))[0], strict=True))

    def name_of(self, actor_id: str) -> str:
        """The name of a process by its Ray actor id, in hexadecimal digits."""
        return next((name for name, info in self.infos.items() if info.actor_id == actor_id), actor_id)

    def kill(self) -> None:
        """End them all at once."""
        actors, self._actors = self._actors, {}
        self._deaths.forget(*actors)
        for actor in actors.values():
            ray.kill(actor)

    async def sum_progress(self, names: Sequence[str]) -> int:
        """The sum of what `progress` of some processes returns; one that does not answer at once counts 0."""
        return sum((await self._ask("progress", names)).values())

    async def _ask(self, method: str, names: Sequence[str]) -> dict[str, Any]:
        """The answers to a question, by name; a process that does not answer at once is left out."""
        futures = {_future(getattr(self._actors[name], method).remote()): name for name in names}
        done, late = await asyncio.wait(futures, timeout=_REPORT_S)
        _drop(late)
        # Why one failed is told by the call that is being waited for.
        return {futures[future]: future.result() for future in done if future.exception() is None}

    async def wait(
        self,
        calls: Sequence[Call],
        phase: str,
        deadline_s: float,
        report: Report | None = None,
        setting: str = "trainer.deadline_s",
    ) -> list[list[Any]]:
        """The answers to some calls, each in order of rank.

        Args:
            phase: what is being done, for errors.
            deadline_s: longest time, in seconds.
            report: awaited now and then.
            setting: that says how long.

        Raises:
            UserError: the first cause is the user's.
            RunFailedError: a process raised something else, or died.
            DeadlineError: some did not answer in time.
            asyncio.CancelledError: the wait was cancelled. The processes go on with their work, except for calls that
                are to be abandoned then.
        """
        names = {_future(ref): name for call in calls for ref, name in zip(call.refs, call.names, strict=True)}
        if phase not in _UNRECORDED:
            self._record(names, phase, min(call.began for call in calls))
        pending = set(names)
        try:
            pending = await self._settle(names, time.monotonic() + deadline_s, report)
        except BaseException:
            _abandon(calls)
            raise
        finally:
            _drop(names)
        errors = self._deaths.concerning(names.values())
        for future, name in names.items():
            if future not in pending and (error := future.exception()) is not None:
                errors.setdefault(name, error)
        if errors:
            raise first_cause(errors, phase, {name: info.log for name, info in self.infos.items()})
        if pending:
            late = list(dict.fromkeys(name for future, name in names.items() if future in pending))
            raise DeadlineError(late, phase, deadline_s, await self._ask("activity", late), setting)
        answers = iter(names)
        return [[next(answers).result() for _ in call.refs] for call in calls]

    def _record(self, names: Mapping[asyncio.Future[Any], str], phase: str, began: float) -> None:
        """Each process is in the phase until it has answered, or is waited for no more."""
        for future, name in names.items():
            handle = self.timeline.begin(name, phase, began)
            future.add_done_callback(lambda _, handle=handle: self.timeline.end(handle))

    async def settle(self, calls: Sequence[Call], deadline_s: float) -> None:
        """Wait until calls that have failed have ended in every process, so that others may follow."""
        futures = {_future(ref) for call in calls for ref in call.refs}
        if not futures:
            return
        _, late = await asyncio.wait(futures, timeout=deadline_s)
        _drop(futures)
        if late:
            raise RunFailedError(f"{len(late)} processes did not end what had failed within {deadline_s:g} s")

    async def _settle(
        self, names: Mapping[asyncio.Future[Any], str], end: float, report: Report | None
    ) -> set[asyncio.Future[Any]]:
        """Wait until all is answered, something failed, or it is `end`; returns what is not answered."""
        pending, failed, waited_for = set(names), False, set(names.values())
        with self._deaths.told() as died:
            death = asyncio.ensure_future(died.wait())
            try:
                while pending:
                    reporting = report is not None and not failed
                    left = max(0.0, end - time.monotonic())
                    timeout = min(left, _REPORT_S) if reporting else left
                    watched = pending if failed else {*pending, death}
                    done, _ = await asyncio.wait(watched, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                    pending -= done
                    raised = any(future.exception() for future in done & names.keys())
                    if not failed and (raised or self._deaths.concerning(waited_for)):
                        failed = True
                        end = min(end, time.monotonic() + _GRACE_S)
                    if death.done() and not failed:
                        died.clear()
                        death = asyncio.ensure_future(died.wait())
                    if time.monotonic() >= end:
                        break
                    if report is not None and pending and not failed:
                        await report()
            finally:
                death.cancel()
        return pending


def _future(ref: Any) -> asyncio.Future[Any]:
    return asyncio.wrap_future(ref.future())


def _drop(futures: Mapping[asyncio.Future[Any], str] | set[asyncio.Future[Any]]) -> None:
    """Wait no more; what is answered has its error looked at, or asyncio would warn of it."""
    for future in futures:
        if not future.done():
            future.cancel()
        elif not future.cancelled():
            future.exception()


def _abandon(calls: Sequence[Call]) -> None:
    if not ray.is_initialized():  # `ray.cancel` would start or join a cluster
        return
    for call in calls:
        if call.abandon:
            for ref in call.refs:
                ray.cancel(ref, recursive=False)
