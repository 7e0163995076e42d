"""Weights from one process to others on its machine, through two buffers that both sides see.

Invariant: a buffer is written again only after every receiver has said that it is done with it; a receiver that has
seen the end has seen every tensor that was sent, in order. Every wait has a deadline.

The messages go over a Unix socket: `Opened`, then `Filled` and the receiver's `Taken` for each bucket, then `Ended`.
Where the buffers are, `pentad.weights.transport.memory` knows.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from typing import Any

import torch
from torch import Tensor

from pentad.weights.transport.memory import Memory, OpenBuffer
from pentad.weights.transport.packing import Checksums, Entry, PackedBucket, end_of
from pentad.weights.transport.protocol import TransportError, TransportTimeoutError

_BUFFERS = 2
_RETRY_S = 0.01
_POLL_S = 0.2


CLOSED = "closed"
"""File beside the sockets that says why the publication has ended."""


@dataclass(frozen=True)
class Opened:
    """Sender: a publication begins; `buffers` are what `Memory.share` gave."""

    version: int
    buffers: tuple[Any, ...]


@dataclass(frozen=True)
class Filled:
    """Sender: a buffer holds these tensors."""

    buffer: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Taken:
    """Receiver: the buffer may be written again."""

    buffer: int


@dataclass(frozen=True)
class Ended:
    """Sender: that was all. `checksums` are those of the tensors as they left; empty where none were taken."""

    checksums: Mapping[str, int]


@dataclass(frozen=True)
class Failed:
    """Either side: the publication cannot go on."""

    reason: str


class BucketSender:
    """One publication, from the process that has the tensors.

    Args:
        path: of a Unix socket that does not exist yet.
        key: that receivers must know.
        memory: where the buffers are.
        bucket_bytes: size of each of the two buffers.
        receivers: how many processes take the weights.
        deadline_s: longest wait for a receiver, in seconds.
        certify: take checksums of the tensors as they leave.
        name: of this process in errors.
    """

    def __init__(
        self,
        path: str,
        key: bytes,
        memory: Memory,
        bucket_bytes: int,
        *,
        receivers: int = 1,
        deadline_s: float = 600.0,
        certify: bool = True,
        name: str = "trainer",
    ) -> None:
        self._path, self._key = path, key
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(receivers)
        self._memory, self._bytes, self._certify = memory, bucket_bytes, certify
        self._receivers, self._deadline_s, self._name = receivers, deadline_s, name
        self._phase, self._last = "meeting the engine", "no tensor"

    def send(self, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, version: int) -> dict[str, int]:
        """Send all tensors, and wait until every receiver has taken them.

        Args:
            tensors: name and whole tensor, on the buffers' device or another.
            dtype: what to cast to.

        Returns:
            checksum of each tensor as it left; empty without `certify`.

        Raises:
            TransportError: a receiver failed, or did not answer in time, or a tensor does not fit into a buffer.
        """
        connections: list[Connection] = []
        try:
            connections = self._meet()
            return self._send(connections, tensors, dtype, version)
        except (EOFError, OSError) as error:
            # A wait for what is sent here, as of a relay, has its own words.
            late = str(error) if isinstance(error, TransportTimeoutError) else None
            reason = late or _reason(connections) or f"the engine went away ({type(error).__name__})"
            for connection in connections:  # the others need not guess
                _tell(connection, Failed(reason))
            raise self._error(reason) from error
        except BaseException as error:
            for connection in connections:
                _tell(connection, Failed(str(error)))
            raise
        finally:
            for connection in connections:
                connection.close()
            self.close()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _meet(self) -> list[Connection]:
        connections: list[Connection] = []
        end = time.monotonic() + self._deadline_s
        while len(connections) < self._receivers:
            self._listener.settimeout(_POLL_S)
            try:
                accepted, _ = self._listener.accept()
            except TimeoutError:
                _check_open(self._path, self._error)
                if time.monotonic() > end:
                    raise self._error(f"no engine within {self._deadline_s:g} s") from None
                continue
            accepted.setblocking(True)
            connection = Connection(accepted.detach())
            try:
                deliver_challenge(connection, self._key)
                answer_challenge(connection, self._key)
            except (AuthenticationError, EOFError):
                connection.close()
                continue
            connections.append(connection)
        return connections

    def _send(
        self, connections: list[Connection], tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, version: int
    ) -> dict[str, int]:
        buffers = [self._memory.allocate(self._bytes) for _ in range(_BUFFERS)]
        for connection in connections:
            connection.send(Opened(version, tuple(self._memory.share(buffer) for buffer in buffers)))
        sums, number = Checksums(), 0
        bucket = PackedBucket(buffers[0])
        for name, tensor in tensors:
            self._phase, self._last = "packing", name
            source = tensor.detach().to(dtype)
            if source.numel() * source.element_size() > self._bytes:
                size = source.numel() * source.element_size()
                raise self._error(f"{name} has {size / 2**20:.0f} MiB, a buffer {self._bytes / 2**20:.0f}")
            if not bucket.has_room(source):
                self._dispatch(connections, number, bucket, buffers, sums)
                number += 1
                bucket = PackedBucket(buffers[number % _BUFFERS])
                self._wait_until_taken(connections, number)
            bucket.add(name, source)
        if bucket.entries:
            self._dispatch(connections, number, bucket, buffers, sums)
            number += 1
        for last in range(max(0, number - _BUFFERS), number):
            self._wait_until_taken(connections, last + _BUFFERS)
        for buffer in buffers:
            self._memory.release(buffer)
        checksums = sums.collect()
        for connection in connections:
            connection.send(Ended(checksums))
        return checksums

    def _dispatch(
        self,
        connections: list[Connection],
        number: int,
        bucket: PackedBucket,
        buffers: Sequence[Tensor],
        sums: Checksums,
    ) -> None:
        if self._certify:
            sums.add(bucket.entries, buffers[number % _BUFFERS])
        self._memory.finish()
        for connection in connections:
            connection.send(Filled(number % _BUFFERS, tuple(bucket.entries)))

    def _wait_until_taken(self, connections: list[Connection], number: int) -> None:
        """Until the bucket that used the buffer of bucket `number` before it has been taken by all."""
        if number >= _BUFFERS:
            self._phase = "waiting for the engine to take a bucket"
            for connection in connections:
                taken = self._expect(connection, Taken)
                if taken.buffer != number % _BUFFERS:
                    raise self._error(f"the engine took buffer {taken.buffer} instead of {number % _BUFFERS}")

    def _expect(self, connection: Connection, kind: type) -> Any:
        return _expect(connection, kind, self._deadline_s, self._path, self._error)

    def _error(self, reason: str) -> TransportError:
        return TransportError(f"sending weights from {self._name}: {reason}; {self._phase}, after {self._last}")


class BucketReceiver:
    """One sender's publication, as a receiver sees it.

    Args:
        path: of the sender's socket, which may not exist yet.
        key: that the sender knows.
        open_buffer: opens what `Memory.share` gave.
        deadline_s: longest wait for the sender, in seconds.
        name: of this process in errors.
    """

    def __init__(
        self, path: str, key: bytes, open_buffer: Callable[[Any], OpenBuffer], deadline_s: float, name: str
    ) -> None:
        self.checksums: Mapping[str, int] = {}
        self.version = -1
        self._path, self._key, self._open = path, key, open_buffer
        self._deadline_s, self._name = deadline_s, name
        self._phase, self._last = "meeting the trainer", "no tensor"

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        """All tensors, a bucket at a time, valid until the next one is asked for.

        Afterwards `checksums` and `version` are those of the publication.

        Raises:
            TransportError: the sender failed, or did not answer in time, or sent a bucket that is cut short.
        """
        with self._meet() as connection:
            try:
                yield from self._buckets(connection)
            except (EOFError, OSError) as error:
                reason = _reason([connection]) or f"the trainer went away ({type(error).__name__})"
                raise self._error(reason) from error
            except BaseException as error:
                _tell(connection, Failed(str(error) or type(error).__name__))
                raise

    def _buckets(self, connection: Connection) -> Iterator[list[tuple[str, Tensor]]]:
        opened = self._expect(connection, Opened)
        self.version = opened.version
        buffers = [self._open(buffer) for buffer in opened.buffers]
        while True:
            self._phase = "waiting for a bucket"
            message = self._expect(connection, (Filled, Ended))
            if isinstance(message, Ended):
                self.checksums = message.checksums
                return
            buffer = buffers[message.buffer]
            self._phase = "loading a bucket"
            yield list(self._tensors(buffer.read(end_of(message.entries)), message.entries))
            buffer.finish()
            connection.send(Taken(message.buffer))

    def _meet(self) -> Connection:
        end = time.monotonic() + self._deadline_s
        while True:
            try:
                return Client(self._path, "AF_UNIX", authkey=self._key)
            except (FileNotFoundError, ConnectionRefusedError):
                _check_open(self._path, self._error)
                if time.monotonic() > end:
                    raise self._error(f"no sender within {self._deadline_s:g} s") from None
                time.sleep(_RETRY_S)

    def _tensors(self, data: Tensor, entries: Iterable[Entry]) -> Iterator[tuple[str, Tensor]]:
        for entry in entries:
            self._last = entry.name
            if entry.offset + entry.bytes > len(data):
                raise self._error(f"the bucket ends before {entry.name} does")
            yield entry.name, entry.view(data)

    def _expect(self, connection: Connection, kind: Any) -> Any:
        return _expect(connection, kind, self._deadline_s, self._path, self._error)

    def _error(self, reason: str) -> TransportError:
        return TransportError(f"receiving weights at {self._name}: {reason}; {self._phase}, after {self._last}")


def _expect(
    connection: Connection, kind: Any, deadline_s: float, path: str, error: Callable[[str], TransportError]
) -> Any:
    """The next message, which must be of a kind, within a deadline."""
    end = time.monotonic() + deadline_s
    while not connection.poll(_POLL_S):
        _check_open(path, error)
        if time.monotonic() > end:
            raise error(f"no answer within {deadline_s:g} s")
    message = connection.recv()
    if isinstance(message, Failed):
        raise error(_told(message))
    if not isinstance(message, kind):
        raise error(f"unexpected answer {type(message).__name__}")
    return message


def _check_open(path: str, error: Callable[[str], TransportError]) -> None:
    folder = os.path.dirname(path)
    with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, CLOSED)) as file:
        raise error(file.read())
    if not os.path.isdir(folder):
        raise error("the transport is closed")


def _tell(connection: Connection, message: Any) -> None:
    with contextlib.suppress(OSError):  # it is gone, and knows
        connection.send(message)


def _reason(connections: Iterable[Connection]) -> str | None:
    """Why one of the other sides failed, if it could still tell."""
    for connection in connections:
        with contextlib.suppress(EOFError, OSError):
            while connection.poll(0):
                message = connection.recv()
                if isinstance(message, Failed):
                    return _told(message)
    return None


def _told(message: Failed) -> str:
    return f"the other side failed: {message.reason}"
