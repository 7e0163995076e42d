"""The process through which references to buckets of weights pass, from senders to receivers.

Invariant: every receiver gets every bucket of every sender, in one order. A sender has at most so many buckets on
their way as its channel allows; a bucket's reference is dropped when all receivers have asked for the next.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from pentad.cluster.process import GROUPS, Process


class ChannelClosedError(ConnectionError):
    """The publication has ended before all was sent and received."""


@dataclass(frozen=True)
class Terms:
    """What is agreed for one channel.

    Attributes:
        key: of the channel, unique.
        senders, receivers: how many there are.
        in_flight: buckets that each sender may have on their way.
    """

    key: str
    senders: int
    receivers: int
    in_flight: int


class Exchange:
    """What is on its way in one channel. Everything happens in one event loop.

    Args:
        terms: of the channel.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        # By the bucket's number: its sender and its reference.
        self._held: dict[int, tuple[str, Any]] = {}
        self._sent = 0
        self._finished: set[str] = set()
        # The bucket that each receiver wants next; it needs none before it any more.
        self._wanted: dict[str, int] = {}
        self._closed: str | None = None
        self._changed = asyncio.Condition()

    async def put(self, sender: str, parcel: Any) -> None:
        """Send on a bucket; returns when the sender may make the next."""
        async with self._changed:
            self._check()
            self._held[self._sent] = (sender, parcel)
            self._sent += 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._closed is not None or self._room(sender))
            self._check()

    async def finish(self, sender: str) -> None:
        """The sender has no more buckets."""
        async with self._changed:
            self._check()
            self._finished.add(sender)
            self._changed.notify_all()

    async def take(self, receiver: str, number: int) -> Any:
        """The bucket of that number, when it is there; None when all have been taken.

        Args:
            number: 0, 1, ... The receiver has done with all before it.
        """
        async with self._changed:
            self._wanted[receiver] = number
            self._drop()
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._closed is not None or number < self._sent or self._all_sent())
            self._check()
            return self._held[number][1] if number < self._sent else None

    async def close(self, reason: str) -> None:
        """End the channel; who waits is told why."""
        async with self._changed:
            self._closed = reason
            self._held.clear()
            self._changed.notify_all()

    def _room(self, sender: str) -> bool:
        return sum(other == sender for other, _ in self._held.values()) < self._terms.in_flight

    def _all_sent(self) -> bool:
        return len(self._finished) == self._terms.senders

    def _drop(self) -> None:
        if len(self._wanted) == self._terms.receivers:
            first = min(self._wanted.values())
            self._held = {number: held for number, held in self._held.items() if number >= first}

    def _check(self) -> None:
        if self._closed is not None:
            raise ChannelClosedError(f"the weight channel was closed: {self._closed}")


@ray.remote(concurrency_groups=GROUPS)
class Mailbox(Process):
    """The exchanges of all channels of a run. What is sent on is wrapped in a list: Ray would fetch a bare bucket."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self._exchanges: dict[str, Exchange] = {}
        self._closed: dict[str, str] = {}

    async def put(self, terms: Terms, sender: str, parcel: list[Any]) -> None:
        """See `Exchange.put`."""
        await self._exchange(terms).put(sender, parcel)

    async def finish(self, terms: Terms, sender: str) -> None:
        """See `Exchange.finish`."""
        await self._exchange(terms).finish(sender)

    async def take(self, terms: Terms, receiver: str, number: int) -> list[Any] | None:
        """See `Exchange.take`."""
        return await self._exchange(terms).take(receiver, number)

    async def close(self, key: str, reason: str) -> None:
        """End a channel for good; who waits is told why."""
        self._closed[key] = reason
        if (exchange := self._exchanges.pop(key, None)) is not None:
            await exchange.close(reason)

    def _exchange(self, terms: Terms) -> Exchange:
        # Whoever comes first makes it: calls of different processes arrive in any order.
        if terms.key in self._closed:
            raise ChannelClosedError(f"the weight channel was closed: {self._closed[terms.key]}")
        return self._exchanges.setdefault(terms.key, Exchange(terms))
