"""The weight transport through Ray's object store, which works wherever Ray does.

Invariant: engines receive while trainer ranks still send. Of each pipeline stage at most `BUCKETS_IN_FLIGHT` buckets,
of `BUCKET_BYTES` or one larger tensor each, are in the object store at once.
"""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError
from torch import Tensor

from pentad.cluster.mailbox import Terms
from pentad.weights.transport.bucket import pack
from pentad.weights.transport.protocol import TransportTimeoutError

BUCKET_BYTES = 256 << 20
BUCKETS_IN_FLIGHT = 3


@dataclass(frozen=True)
class StoreChannel:
    """One publication; see `pentad.weights.transport.protocol.WeightChannel`.

    Attributes:
        mailbox: the actor of `pentad.cluster.mailbox.Mailbox`.
        dtype: what is sent is cast to; None keeps each tensor's own.
        bucket_bytes: a bucket is closed before it would pass this.
        deadline_s: longest time that a sender waits for room, or a receiver for a bucket, in seconds.
    """

    mailbox: ActorHandle
    terms: Terms
    dtype: torch.dtype | None
    bucket_bytes: int
    deadline_s: float

    def of_stage(self, stage: int) -> "StoreChannel":
        """The channel itself: the mailbox tells senders apart."""
        return self

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
        """Send whole tensors; returns the checksum of each.

        Raises:
            TransportTimeoutError: the receivers did not take what was sent.
            ChannelClosedError: the publication has ended.
        """
        sender, sent = _who(), {}
        for bucket in pack(tensors, self.dtype, self.bucket_bytes):
            sent |= {entry.name: entry.checksum for entry in bucket.entries}
            first, last = bucket.entries[0].name, bucket.entries[-1].name
            parcel = [ray.put(bucket)]
            self._wait(
                self.mailbox.put.remote(self.terms, sender, parcel),
                f"the receivers did not make room after tensors {first} to {last}",
            )
        self._wait(self.mailbox.finish.remote(self.terms, sender), "the mailbox did not answer after the last tensor")
        return sent

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of all senders, on the CPU, read-only; each valid until the next is taken.

        Raises:
            TransportTimeoutError: nothing more was sent, and it was not all.
            ChannelClosedError: the publication has ended.
        """
        receiver, last, number = f"{_who()} {uuid.uuid4().hex}", "", 0
        while True:
            problem = f"no tensor arrived after {last}" if last else "no tensor arrived"
            parcel = self._wait(self.mailbox.take.remote(self.terms, receiver, number), problem)
            if parcel is None:
                return
            bucket = self._wait(parcel[0], problem)
            yield from bucket.tensors()
            last, number = bucket.entries[-1].name, number + 1
            del bucket, parcel  # while the next is waited for, this one's memory is free

    def close(self, reason: str) -> None:
        """End the publication; who still sends or receives is told why."""
        self.mailbox.close.remote(self.terms.key, reason)

    def _wait(self, ref: Any, problem: str) -> Any:
        try:
            return ray.get(ref, timeout=self.deadline_s)
        except GetTimeoutError:
            raise TransportTimeoutError(f"{problem} within {self.deadline_s:g} s") from None


class ObjectStore:
    """Makes channels through Ray's object store.

    Args:
        mailbox: the actor of `pentad.cluster.mailbox.Mailbox`.
        deadline_s: see `StoreChannel`.
    """

    def __init__(
        self,
        mailbox: ActorHandle,
        deadline_s: float,
        *,
        bucket_bytes: int = BUCKET_BYTES,
        in_flight: int = BUCKETS_IN_FLIGHT,
    ) -> None:
        self._mailbox = mailbox
        self._deadline_s = deadline_s
        self._bucket_bytes = bucket_bytes
        self._in_flight = in_flight

    def channel(self, senders: int, receivers: int, dtype: torch.dtype | None) -> StoreChannel:
        """A new channel.

        Args:
            senders, receivers: how many processes will send and receive.
            dtype: what is sent is cast to; None keeps each tensor's own.
        """
        terms = Terms(uuid.uuid4().hex, senders, receivers, self._in_flight)
        return StoreChannel(self._mailbox, terms, dtype, self._bucket_bytes, self._deadline_s)


@dataclass
class StoreTransport:
    """From the stages of a trainer to engines; see `pentad.weights.transport.protocol.Transport`.

    Attributes:
        senders: pipeline stages of the trainer.
        receivers: engines.
        dtype: of the engines.
    """

    store: ObjectStore
    senders: int
    receivers: int
    dtype: torch.dtype
    name: str = "store"

    def open(self, version: int) -> StoreChannel:
        """The channel of the next publication."""
        return self.store.channel(self.senders, self.receivers, self.dtype)


def _who() -> str:
    return ray.get_runtime_context().get_actor_id() or "driver"
