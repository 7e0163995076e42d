"""Processes of one kind, which are called together.

Invariant: a call returns the answers of all that were called, or raises the first cause as soon as any process of the
run has failed or the deadline has passed; see `pentad.cluster.processes`. Calls overlap: while one is awaited, others
may be made, to the same processes or to others. A process with one thread answers them in the order in which they were
made.

Example::

    scores, completion = await asyncio.gather(
        trainers.call("logprobs", batch, phase="log-probs"), engines.call_rank(0, "generate", request, phase="rollout")
    )
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.actor import ActorHandle

from pentad.cluster.processes import Call, Processes, ProcessInfo
from pentad.record.timeline import Timeline

Progress = Callable[[int], None]


class Gang:
    """Processes of one kind, which are called together.

    Args:
        name: of one process, as in "trainer rank".
        actors: in order of rank.
        processes: all processes of the run; those of the gang join them.
        deadline_s: longest time of one call, in seconds.
        spawn: starts the process of a rank, where one that is lost can be replaced.

    Attributes:
        reserved: processes that hold further GPUs for those of this gang, the same number for each; None: none do.
    """

    def __init__(
        self,
        name: str,
        actors: Sequence[ActorHandle],
        processes: Processes,
        deadline_s: float,
        spawn: Callable[[int], ActorHandle] | None = None,
    ) -> None:
        self.name = name
        self.actors = tuple(actors)
        self.processes = processes
        self.deadline_s = deadline_s
        self.names = tuple(f"{name} {rank}" for rank in range(len(actors)))
        self._spawn = spawn
        self.reserved: Gang | None = None
        for process, actor in zip(self.names, self.actors, strict=True):
            processes.add(process, actor, replaceable=spawn is not None)

    def __len__(self) -> int:
        return len(self.actors)

    @property
    def timeline(self) -> Timeline:
        """Where spans of the processes are taken down."""
        return self.processes.timeline

    def info(self, rank: int) -> ProcessInfo:
        """What the process of a rank said of itself when it had started."""
        return self.processes.infos[self.names[rank]]

    def neighbours(self, rank: int) -> int:
        """How many processes of the gang are on the machine of a rank, its own among them."""
        return sum(self.info(other).machine == self.info(rank).machine for other in range(len(self)))

    async def replace(self, rank: int, phase: str) -> None:
        """End the process of a rank, dead or alive, and start another, which knows nothing of what that one knew.

        Raises:
            UserError, RunFailedError: see `Processes.wait`.
        """
        if self._spawn is None:
            raise RuntimeError(f"a {self.name} cannot be replaced")
        name = self.names[rank]
        self.processes.end(name)
        actor = self._spawn(rank)
        self.actors = (*self.actors[:rank], actor, *self.actors[rank + 1 :])
        self.processes.add(name, actor, replaceable=True)
        self.processes.infos[name] = await self.call_rank(rank, "info", phase=phase)

    async def call(self, method: str, *args: Any, phase: str, progress: Progress | None = None) -> list[Any]:
        """Call a method of every process with the same arguments.

        Args:
            phase: what is being done, for errors.
            progress: called now and then with the sum of what the processes' `progress` returns.

        Returns:
            the answers, in order of rank.

        Raises:
            UserError, RunFailedError: see `Processes.wait`.
        """
        return await self.finish(self.start(method, *args), phase, progress)

    async def call_each(
        self, method: str, arguments: Sequence[tuple[Any, ...]], phase: str, progress: Progress | None = None
    ) -> list[Any]:
        """Call a method of each process with arguments of its own, in order of rank; else as `call`."""
        return await self.finish(self.start_each(method, arguments), phase, progress)

    async def call_rank(self, rank: int, method: str, *args: Any, phase: str) -> Any:
        """Call a method of one process.

        Cancelling this cancels the method, too, where it waits for its turn or is a coroutine.
        """
        call = Call((getattr(self.actors[rank], method).remote(*args),), (self.names[rank],), abandon=True)
        return (await self.finish(call, phase))[0]

    def start(self, method: str, *args: Any) -> Call:
        """Call a method of every process with the same arguments; `finish` or `Processes.wait` waits."""
        return self.start_each(method, [args] * len(self.actors))

    def start_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Call:
        """Call a method of each process with arguments of its own; `finish` or `Processes.wait` waits."""
        pairs = zip(self.actors, arguments, strict=True)
        return Call(tuple(getattr(actor, method).remote(*args) for actor, args in pairs), self.names)

    async def finish(
        self,
        call: Call,
        phase: str,
        progress: Progress | None = None,
        *,
        deadline_s: float | None = None,
        setting: str = "trainer.deadline_s",
    ) -> list[Any]:
        """Wait for the answers, in order of rank; see `call`.

        Args:
            deadline_s: another than the gang's, and `setting`, which says so.
        """
        report: Callable[[], Awaitable[None]] | None = None
        if progress is not None:

            async def report() -> None:
                progress(await self.processes.sum_progress(self.names))

        return (await self.processes.wait([call], phase, deadline_s or self.deadline_s, report, setting))[0]
