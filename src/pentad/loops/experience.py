"""Groups between sampler and trainer.

Invariant: at most `(max_staleness + 1) * groups_per_step` groups are charged at once: being sampled, finished, or in
training. `release` frees the charge of the groups that were taken only after the new weights are published, and groups
are taken in the order of the publications under which they were begun. So no token that is trained on is more than
`max_staleness` publications old, nothing is lost, and nothing is taken twice; with `max_staleness = 0` training is
synchronous.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pentad.loops.group import Group

# So many times the groups of a step may be sampled without one that is admitted.
_PATIENCE = 20


class Experience:
    """The slots.

    With `max_staleness = 0` groups are begun by `take` alone. Otherwise `release` begins groups, too, and so does every
    group that is not admitted: sampling goes on while the trainer trains.

    Args:
        sample: samples and scores the group of a number (0, 1, 2, ...).
        admit: whether a finished group is trained on; one that is not gives its slot to the next number.
        groups_per_step: what `take` returns.
        max_staleness: publications between sampling and training.
        on_none_admitted: is told of the groups that were not admitted, when they are many and none was admitted since
            the last `take`; it raises what ends the run.

    Attributes:
        steps_left: calls of `take` that are still to come, so that no group is begun that nobody would take; None: any
            number.

    Example::

        experience = Experience(sampler.group, algorithm.admit, groups_per_step=32)
        groups = await experience.take()
        ...  # train, publish
        await experience.release()
    """

    def __init__(
        self,
        sample: Callable[[int], Awaitable[Group]],
        admit: Callable[[Group], bool],
        groups_per_step: int,
        max_staleness: int = 0,
        on_none_admitted: Callable[[list[Group]], None] = lambda groups: None,
    ) -> None:
        self._sample = sample
        self._admit = admit
        self._on_none_admitted = on_none_admitted
        self._per_step = groups_per_step
        self._limit = (max_staleness + 1) * groups_per_step
        self._runs_ahead = max_staleness > 0
        self.steps_left: int | None = None
        self._next = 0
        # Of the groups that are charged and not taken: how many releases came before they were begun.
        self._begun: dict[int, int] = {}
        self._releases = 0
        self._running: dict[asyncio.Task[Group], int] = {}
        self._finished: dict[int, Group] = {}
        self._taken = 0
        # Numbers that a checkpoint says were being sampled; they are sampled again before new ones.
        self._again: list[int] = []
        # Not admitted since `take_rejected`.
        self._rejected: list[Group] = []
        self._since_admitted: list[Group] = []
        # What ended sampling; `take` raises it.
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    async def take(self) -> list[Group]:
        """The next groups to train on, in the order of their numbers, once so many are finished.

        Raises:
            BaseException: what sampling a group raised; the groups that run are cancelled.
        """
        if self._taken:
            raise RuntimeError("release() comes before the next take()")
        try:
            self._fill()
            while self._failure is None and len(numbers := self._ready()) < self._per_step:
                self._changed.clear()
                await self._changed.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            await self.close()
            raise
        self._taken = len(numbers)
        for number in numbers:
            del self._begun[number]
        return [self._finished.pop(number) for number in sorted(numbers)]

    def take_rejected(self) -> list[Group]:
        """The groups that were not admitted since the last call."""
        rejected, self._rejected = self._rejected, []
        return rejected

    async def release(self) -> None:
        """Free the slots of the groups that were taken; to be called when the weights trained on them are published.

        In synchronous training the next `take` uses them, so that nothing is sampled between two steps.
        """
        self._taken, self._releases = 0, self._releases + 1
        if self.steps_left is not None:
            self.steps_left -= 1
        if self._runs_ahead:
            self._fill()

    async def close(self) -> None:
        """Cancel what runs."""
        running, self._running = dict(self._running), {}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def sample_again(self) -> dict[int, Group]:
        """Have the finished groups sampled anew, before the first `take`; returns them by number."""
        groups, self._finished, self._begun = self._finished, {}, {}
        self._again = sorted([*self._again, *groups])
        return groups

    def state_dict(self) -> dict[str, Any]:
        """What a run must know to go on: finished groups, and the numbers of those that were being sampled.

        To be taken between `release` and `take`, or before the first `take`.
        """
        for task in [task for task in self._running if task.done()]:
            self._collect(task)  # the loop was about to; its sampler already takes it for finished
        return {
            "next": self._next,
            "takes": self._releases,
            "begun": {number: self._begun[number] for number in self._finished},
            "finished": dict(self._finished),
            "sampling": sorted([*self._running.values(), *self._again]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, before the first `take`."""
        if self._running or self._finished or self._next:
            raise RuntimeError("load_state_dict() comes before the first take()")
        self._next, self._finished = state["next"], dict(state["finished"])
        self._releases, self._begun = state["takes"], dict(state["begun"])
        self._again = list(state["sampling"])

    def _fill(self) -> None:
        """Begin as many groups as there are free slots, and as will be taken."""
        limit = self._limit
        if self.steps_left is not None:
            limit = min(limit, self.steps_left * self._per_step)
        while self._failure is None and len(self._running) + len(self._finished) + self._taken < limit:
            if self._again:
                number = self._again.pop(0)
            else:
                number, self._next = self._next, self._next + 1
            self._begun[number] = self._releases
            task = asyncio.ensure_future(self._sample(number))
            self._running[task] = number
            task.add_done_callback(self._collect)

    def _collect(self, task: asyncio.Task[Group]) -> None:
        """Keep a group that is finished, or give its slot away."""
        number = self._running.pop(task, None)
        if number is None:  # closed
            return
        try:
            group = task.result()
            if self._admit(group):
                self._finished[number] = group
                self._since_admitted = []
            else:
                del self._begun[number]
                self._rejected.append(group)
                self._since_admitted.append(group)
                if len(self._since_admitted) >= _PATIENCE * self._per_step:
                    self._on_none_admitted(self._since_admitted)
                self._fill()
        except BaseException as error:
            self._failure = self._failure or error
        self._changed.set()

    def _ready(self) -> list[int]:
        """Finished groups that may be taken now; `groups_per_step` of them once there are so many.

        A group may be taken if all that were begun earlier are taken before it or with it: what is begun with all slots
        in use must be taken within the next `max_staleness + 1` steps, and so must what was begun before.
        """
        ready: list[int] = []
        for begun in sorted(set(self._begun.values())):
            mine = [number for number, when in self._begun.items() if when == begun]
            finished = sorted(number for number in mine if number in self._finished)
            ready += finished[: self._per_step - len(ready)]
            if len(finished) < len(mine) or len(ready) == self._per_step:
                break
        return ready
