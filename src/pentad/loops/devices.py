"""Work of several models, at the same time where they have devices of their own.

Invariant: models on the same devices take turns in the order given. When one fails, or the wait is cancelled, the waits
for the others have ended before that is raised.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pentad.config.schema.algorithms.base import Role
from pentad.loops.journal import Journal
from pentad.loops.roles import Progress


@dataclass(frozen=True)
class Work:
    """What one model is to do.

    Attributes:
        phase: that is shown.
        do: does it, and tells its progress.
    """

    role: Role
    phase: str
    do: Callable[[Progress], Awaitable[Any]]


async def do_all(work: Sequence[Work], devices: Mapping[Role, Hashable], journal: Journal) -> None:
    """Do all work.

    Args:
        devices: where each model is; those that are not named are together.
    """
    lanes: dict[Hashable, list[Work]] = {}
    for one in work:
        lanes.setdefault(devices.get(one.role), []).append(one)
    if len(lanes) < 2:
        for one in work:
            await one.do(journal.progress(one.phase))
        return
    shown = _Shown(journal.progress(", ".join(dict.fromkeys(one.phase for one in work))))
    await _together(_in_turn(lane, shown) for lane in lanes.values())


async def _in_turn(lane: Sequence[Work], shown: "_Shown") -> None:
    for one in lane:
        await one.do(shown.part())


async def _together(coroutines: Iterable[Awaitable[None]]) -> None:
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise


class _Shown:
    """The progress of several at once, as one."""

    def __init__(self, show: Progress) -> None:
        self._show = show
        self._done: list[int] = []

    def part(self) -> Progress:
        place = len(self._done)
        self._done.append(0)

        def advance(done: int) -> None:
            self._done[place] = max(done, self._done[place])
            self._show(sum(self._done))

        return advance
