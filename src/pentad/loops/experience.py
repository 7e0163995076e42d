"""Groups between sampler and trainer.

Invariant: at most `(max_staleness + 1) * groups_per_step` groups are charged at once: being sampled, finished, or in
training. `release` frees the charge of the groups that were taken only after the new weights are published, and groups
are taken in the order of the steps at which they were begun. So no token that is trained on is more than
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

    Args:
        sample: samples and scores the group of a number (0, 1, 2, ...).
        admit: whether a finished group is trained on; one that is not gives its slot to the next number.
        groups_per_step: what `take` returns.
        max_staleness: weight versions between sampling and training.
        on_none_admitted: is told of the groups that were not admitted, when they are many and none was admitted since
            the last `take`; it raises what ends the run.

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
        self._next = 0
        # Of the groups that are charged and not taken: how many takes came before they were begun.
        self._begun: dict[int, int] = {}
        self._takes = 0
        self._running: dict[asyncio.Task[Group], int] = {}
        self._finished: dict[int, Group] = {}
        self._taken = 0
        # Numbers that a checkpoint says were being sampled; they are sampled again before new ones.
        self._again: list[int] = []
        # Not admitted since the last `take`.
        self.rejected: list[Group] = []
        self._admitted = 0

    async def take(self) -> list[Group]:
        """The next groups to train on, in the order of their numbers, once so many are finished.

        Raises:
            BaseException: what sampling a group raised; the groups that run are cancelled.
        """
        if self._taken:
            raise RuntimeError("release() comes before the next take()")
        self.rejected, self._admitted = [], 0
        self._fill()
        try:
            while len(numbers := self._ready()) < self._per_step:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                self._collect()
                self._fill()
        except BaseException:
            await self.close()
            raise
        self._taken, self._takes = len(numbers), self._takes + 1
        for number in numbers:
            del self._begun[number]
        return [self._finished.pop(number) for number in sorted(numbers)]

    async def release(self) -> None:
        """Free the slots of the groups that were taken; to be called when the weights trained on them are published.

        The next `take` uses them, so that nothing is sampled between two steps of synchronous training.
        """
        self._taken = 0

    async def close(self) -> None:
        """Cancel what runs."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a run must know to go on: finished groups, and the numbers of those that were being sampled.

        To be taken between `take` and `release` of a step that was trained, or before the first `take`.
        """
        return {
            "next": self._next,
            "takes": self._takes,
            "begun": {number: self._begun[number] for number in self._finished},
            "finished": dict(self._finished),
            "sampling": sorted([*self._running.values(), *self._again]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, before the first `take`."""
        if self._running or self._finished or self._next:
            raise RuntimeError("load_state_dict() comes before the first take()")
        self._next, self._finished = state["next"], dict(state["finished"])
        self._takes, self._begun = state["takes"], dict(state["begun"])
        self._again = list(state["sampling"])

    def _fill(self) -> None:
        while len(self._running) + len(self._finished) + self._taken < self._limit:
            if self._again:
                number = self._again.pop(0)
            else:
                number, self._next = self._next, self._next + 1
            self._begun[number] = self._takes
            self._running[asyncio.ensure_future(self._sample(number))] = number

    def _collect(self) -> None:
        done = [task for task in self._running if task.done()]
        for task in sorted(done, key=self._running.__getitem__):
            number = self._running.pop(task)
            group = task.result()
            if self._admit(group):
                self._finished[number] = group
                self._admitted += 1
                continue
            del self._begun[number]
            self.rejected.append(group)
            if not self._admitted and len(self.rejected) >= _PATIENCE * self._per_step:
                self._on_none_admitted(self.rejected)

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
