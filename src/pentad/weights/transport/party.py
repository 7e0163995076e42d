"""One process's part in the publication of one pipeline stage over a process group.

Invariant: every wait ends: with what is waited for, at its deadline, or soon after any process of the publication, or
the driver, has said that it is over. Whoever fails says so, and aborts its group.

The processes talk through a store that the driver serves, under the number of the publication and the stage: `arrived`
counts them, `holding/G` those that have group G from before; if these are all, G is used again, otherwise all make a
new one. `over` says why the publication has ended.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed import DistError, PrefixStore, TCPStore

from pentad.weights.transport.groups import HELD, Backend, Group, abort, connect, make_group
from pentad.weights.transport.protocol import TransportError

_LOOK_S = 0.2
# The store's own wait writes a warning for each that is not answered, so it is asked again and again.
_GPU_NAP_S, _STORE_NAP_S = 0.001, 0.01
OVER = "over"


class Party:
    """One process's part.

    Args:
        kind: of the group.
        address: of the store.
        publication: its number.
        stage: of the trainer's pipeline.
        is_sender: it has the tensors; otherwise it takes them.
        size: processes of the group.
        device: where the buffers are.
        deadline_s: longest of any wait, in seconds.
        title: what it does and who it is, as errors say it.

    Attributes:
        phase: what it is at, and `last`, the last tensor, as errors say it.
    """

    def __init__(
        self,
        kind: Backend,
        address: str,
        publication: int,
        stage: int,
        *,
        is_sender: bool,
        size: int,
        device: torch.device,
        deadline_s: float,
        title: str,
    ) -> None:
        self.phase, self.last = "meeting the others", "no tensor"
        self._kind, self._address, self._size, self._device = kind, address, size, device
        self._name, self._key = f"{publication}-{stage}", (address, stage, is_sender)
        self._deadline_s, self._title = deadline_s, title
        self._group: Group | None = None
        self._reason: str | None = None
        self._left = threading.Event()
        with self._store_errors():
            self.store = PrefixStore(f"{publication}/{stage}", _store(address, "talk"))
            self._ends = PrefixStore(f"{publication}", _store(address, "talk"))
            self._watched = PrefixStore(f"{publication}", _store(address, "watch"))
        self._watch = threading.Thread(target=self._look, name=f"publication {self._name}", daemon=True)

    def join(self) -> None:
        """Meet the other processes; afterwards there is a group.

        Raises:
            TransportError: they did not come in time, or the publication has ended.
        """
        self._watch.start()
        held = HELD.get(self._key)
        if held is not None:
            self.add(f"holding/{held.name}")
        if self.add("arrived") == self._size:
            self.set("met", b"1")
        self.get("met")
        if held is not None and self.add(f"holding/{held.name}", 0) == self._size:
            self._group = held
        else:
            if held is not None:
                abort(held)
            self.phase = "joining the group"
            rank = 0 if self._key[2] else self.add("rank")
            made = _on_a_thread(
                lambda: make_group(
                    self._kind, self._address, self._name, rank, self._size, self._device, self._deadline_s
                )
            )
            self._until(made.done)
            if (error := made.exception()) is not None:
                raise self.error(self._reason or str(error)) from error
            self._group = HELD[self._key] = made.result()
        self._title += f" (rank {self._group.rank} of {self._size})"

    def leave(self) -> None:
        """Go, with all well; the group stays."""
        self._left.set()
        if self._watch.is_alive():
            self._watch.join()

    def fail(self, error: BaseException) -> None:
        """Go, and tell the others why; the group is aborted."""
        end(self._ends, f"the other side failed: {str(error) or type(error).__name__}")
        self.leave()
        if self._group is not None and self._group is HELD.get(self._key):
            abort(self._group)

    def start(self, tensor: Tensor) -> Any:
        """Start to broadcast a tensor, uint8, or to receive it; `finish` waits."""
        assert self._group is not None
        try:
            return self._group.broadcast(tensor)
        except RuntimeError as error:
            raise self.error(self._reason or str(error)) from error

    def finish(self, work: Any) -> None:
        """Wait for what was started.

        Raises:
            TransportError: it failed, or took too long, or the publication has ended.
        """
        self._until(work.is_completed)
        try:
            work.wait()
        except RuntimeError as error:
            raise self.error(self._reason or str(error)) from error
        if self._reason is not None:  # the group was aborted meanwhile
            raise self.error(self._reason)

    def set(self, key: str, value: bytes) -> None:
        """Say something."""
        with self._store_errors():
            self.store.set(key, value)

    def add(self, key: str, amount: int = 1) -> int:
        """Count; returns the sum of all."""
        with self._store_errors():
            return self.store.add(key, amount)

    def has(self, key: str) -> bool:
        """Whether something was said."""
        with self._store_errors():
            return self.store.check([key])

    def get(self, key: str) -> bytes:
        """What was said, when it is."""
        self._until(lambda: self.has(key), longest_nap_s=_STORE_NAP_S)
        with self._store_errors():
            return self.store.get(key)

    def forget(self, keys: list[str]) -> None:
        """Remove what was said in an earlier publication, by full keys."""
        with self._store_errors():
            for key in keys:
                _store(self._address, "talk").delete_key(key)

    def error(self, reason: str) -> TransportError:
        """What goes wrong here."""
        return TransportError(f"{self._title}: {reason}; {self.phase}, after {self.last}")

    def _until(self, is_so: Callable[[], bool], longest_nap_s: float = _GPU_NAP_S) -> None:
        end_s, nap_s = time.monotonic() + self._deadline_s, 5e-5
        while not is_so():
            if self._reason is not None:
                raise self.error(self._reason)
            if time.monotonic() > end_s:
                raise self.error(f"no answer within {self._deadline_s:g} s")
            time.sleep(nap_s)
            nap_s = min(nap_s * 1.2, longest_nap_s)

    def _look(self) -> None:
        """On a thread of its own, as the main one may be held by a GPU that waits for a process which is gone."""
        while not self._left.wait(_LOOK_S):
            try:
                if self._watched.check([OVER]):
                    self._reason = self._watched.get(OVER).decode()
            except DistError as error:
                self._reason = f"the driver's store went away ({type(error).__name__})"
            if self._reason is not None:
                if self._group is not None:
                    abort(self._group)
                return

    @contextlib.contextmanager
    def _store_errors(self) -> Generator[None]:
        try:
            yield
        except DistError as error:
            raise self.error(self._reason or f"the driver's store went away ({error})") from error


def _on_a_thread(make: Callable[[], Group]) -> Future[Group]:
    """Make a group on a thread of its own: a process that never comes would hold this one for ever."""
    made: Future[Group] = Future()

    def work() -> None:
        try:
            made.set_result(make())
        except Exception as error:
            made.set_exception(error)

    threading.Thread(target=work, name="making a group", daemon=True).start()
    return made


def end(store: Any, reason: str) -> None:
    """Say that a publication is over, if nobody has yet."""
    with contextlib.suppress(DistError):
        store.compare_set(OVER, "", reason)


@cache
def _store(address: str, use: str) -> TCPStore:
    """This process's connection for one use: a wait holds it."""
    return connect(address, 60.0)


def ending_store(address: str, publication: int) -> PrefixStore:
    """Where the end of a publication is told."""
    return PrefixStore(f"{publication}", _store(address, "talk"))
