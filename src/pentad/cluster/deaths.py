"""Which processes of a run have died.

Invariant: a death is noticed by whoever waits, whatever is waited for; a process that was ended on purpose has not
died.
"""

import asyncio
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager

from ray.actor import ActorHandle


class Deaths:
    """Watches processes by name. Ray tells deaths on a thread of its own."""

    def __init__(self) -> None:
        self._watched: dict[str, ActorHandle] = {}
        # Their deaths concern only who waits for them.
        self._replaceable: set[str] = set()
        self._errors: dict[str, BaseException] = {}
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def watch(self, name: str, actor: ActorHandle, *, replaceable: bool) -> None:
        """Notice the death of a process. Its class has `live` of `pentad.cluster.process.Process`.

        Args:
            replaceable: the run can go on without it.
        """
        self._watched[name] = actor
        if replaceable:
            self._replaceable.add(name)
        # Never answered: the future fails when the process dies.
        life: Future[None] = actor.live.remote().future()
        life.add_done_callback(lambda future: self._died(name, actor, future))

    def forget(self, *names: str) -> None:
        """These processes are ended on purpose, or are dead and have another in their place."""
        with self._lock:
            for name in names:
                self._watched.pop(name, None)
                self._errors.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._errors

    def concerning(self, names: Iterable[str]) -> dict[str, BaseException]:
        """The deaths that end a wait for some processes, by name."""
        waited_for = set(names)
        with self._lock:
            return {
                name: error
                for name, error in self._errors.items()
                if name in waited_for or name not in self._replaceable
            }

    @contextmanager
    def told(self) -> Generator[asyncio.Event]:
        """An event of the running loop, which is set when a process has died."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._waiting.add(entry)
            if self._errors:
                entry[1].set()
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._waiting.discard(entry)

    def _died(self, name: str, actor: ActorHandle, life: Future[None]) -> None:
        error = life.exception() if not life.cancelled() else None
        with self._lock:
            if error is None or self._watched.get(name) is not actor:  # ended on purpose
                return
            self._errors[name] = error
            for loop, event in self._waiting:
                loop.call_soon_threadsafe(event.set)
