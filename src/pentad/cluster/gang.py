"""Calls to the processes of a run, many at once.

Invariant: waiting ends when all that was asked has been answered, or with the first cause as soon as any process of
the run has failed or the deadline has passed; it never waits for a process whose peer is gone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from pentad.cluster.failure import first_cause
from pentad.record.outcome import RunFailedError

_POLL_S = 0.2
_QUIET_POLL_S = 1.0
# After the first failure, others may report what really happened before it is failed.
_GRACE_S = 2.0

Progress = Callable[[int], None]


@dataclass(frozen=True)
class ProcessInfo:
    """What a process says of itself.

    Attributes:
        address: `host:port` where others may meet it; the port was free just now.
        log: the file that takes its output, on its own machine.
    """

    pid: int
    address: str
    log: str


@dataclass(frozen=True)
class Call:
    """Answers on their way, one of each process of a gang, in order of rank."""

    refs: tuple[Any, ...]
    names: tuple[str, ...]


class Processes:
    """All processes of a run. Whichever of them is waited for, the death of any is noticed.

    Attributes:
        infos: what each said of itself, by name; filled by `started`.
    """

    def __init__(self) -> None:
        self.infos: dict[str, ProcessInfo] = {}
        self._actors: dict[str, ActorHandle] = {}
        self._lives: dict[Any, str] = {}

    @property
    def actors(self) -> Mapping[str, ActorHandle]:
        """All processes by name."""
        return self._actors

    def add(self, name: str, actor: ActorHandle) -> None:
        """Take a process in. Its class has the methods of `pentad.cluster.process.Process`."""
        self._actors[name] = actor
        # Never answered: the reference fails when the process dies.
        self._lives[actor.live.remote()] = name

    def started(self, deadline_s: float) -> None:
        """Wait until all processes run."""
        call = Call(tuple(actor.info.remote() for actor in self._actors.values()), tuple(self._actors))
        self.infos = dict(zip(call.names, self.wait([call], "start-up", deadline_s)[0], strict=True))

    def kill(self) -> None:
        """End them all at once."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors, self._lives = {}, {}

    def wait(
        self, calls: Sequence[Call], phase: str, deadline_s: float, progress: Callable[[], None] | None = None
    ) -> list[list[Any]]:
        """The answers to some calls, each in order of rank.

        Args:
            phase: what is being done, for errors.
            deadline_s: longest time, in seconds.
            progress: called now and then.

        Raises:
            UserError: the first cause is the user's.
            RunFailedError: a process raised something else, or died, or did not answer in time.
        """
        names = {ref: name for call in calls for ref, name in zip(call.refs, call.names, strict=True)}
        answers: dict[Any, Any] = {}
        errors: dict[str, BaseException] = {}
        pending = list(names)
        failed = False
        end = time.monotonic() + deadline_s
        while pending:
            poll = _POLL_S if progress or errors else _QUIET_POLL_S
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=poll)
            for ref in done:
                try:
                    answers[ref] = ray.get(ref)  # is here, says ray.wait
                except Exception as error:
                    errors.setdefault(names[ref], error)
            errors = self._deaths() | errors
            if errors and not failed:
                failed = True
                end = min(end, time.monotonic() + _GRACE_S)
            if pending and time.monotonic() > end:
                break
            if progress and pending and not errors:
                progress()
        if errors:
            raise first_cause(errors, phase, {name: info.log for name, info in self.infos.items()})
        if pending:
            raise RunFailedError(
                f"{', '.join(names[ref] for ref in pending)} did not finish {phase} within {deadline_s:g} s "
                "(trainer.deadline_s)"
            )
        return [[answers[ref] for ref in call.refs] for call in calls]

    def _deaths(self) -> dict[str, BaseException]:
        if not self._lives:
            return {}
        dead, _ = ray.wait(list(self._lives), num_returns=len(self._lives), timeout=0)
        errors: dict[str, BaseException] = {}
        for ref in dead:
            try:
                ray.get(ref)
            except Exception as error:
                errors[self._lives[ref]] = error
        return errors


class Gang:
    """Processes of one kind, which are called together.

    Args:
        name: of one process, as in "trainer rank".
        actors: in order of rank.
        processes: all processes of the run; those of the gang join them.
        deadline_s: longest time of one call, in seconds.
    """

    def __init__(self, name: str, actors: Sequence[ActorHandle], processes: Processes, deadline_s: float) -> None:
        self.name = name
        self.actors = tuple(actors)
        self.processes = processes
        self.deadline_s = deadline_s
        self._names = tuple(f"{name} {rank}" for rank in range(len(actors)))
        for process, actor in zip(self._names, self.actors, strict=True):
            processes.add(process, actor)

    def __len__(self) -> int:
        return len(self.actors)

    def info(self, rank: int) -> ProcessInfo:
        """What the process of a rank said of itself when it had started."""
        return self.processes.infos[self._names[rank]]

    def start(self, method: str, *args: Any) -> Call:
        """Call a method of every actor with the same arguments, and do not wait."""
        return self.start_each(method, [args] * len(self.actors))

    def start_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        """Call a method of each actor with its own arguments, and do not wait."""
        pairs = zip(self.actors, arguments, strict=True)
        return Call(tuple(getattr(actor, method).remote(*args) for actor, args in pairs), self._names)

    def finish(self, call: Call, phase: str, progress: Progress | None = None) -> list[Any]:
        """Wait for the answers, in order of rank.

        Args:
            phase: what is being done, for errors.
            progress: called now and then with the sum of what the actors' `progress` returns.
        """
        report = None if progress is None else lambda: progress(self._progress())
        return self.processes.wait([call], phase, self.deadline_s, report)[0]

    def call(self, method: str, *args: Any, phase: str, progress: Progress | None = None) -> list[Any]:
        """Call a method of every actor with the same arguments, and wait; see `finish`."""
        return self.finish(self.start(method, *args), phase, progress)

    def fetch(self, ref: Any, phase: str) -> Any:
        """An object that an actor of this gang has put into the object store."""
        return self.processes.wait([Call((ref,), (self.name,))], phase, self.deadline_s)[0][0]

    def _progress(self) -> int:
        refs: list[Any] = [actor.progress.remote() for actor in self.actors]
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=_POLL_S)
        total = 0
        for ref in done:
            try:
                total += ray.get(ref)
            except Exception:
                continue  # the call that is being waited for says what happened
        return total
