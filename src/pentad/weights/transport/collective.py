"""Channels between devices that share no memory: NCCL between GPUs of one or several machines, gloo between CPUs.

Invariant: in each pipeline stage one sender broadcasts to all receivers, in buckets of at most `bucket_bytes`; the
receivers take the stages in order. Memory beside the model is two buffers of `bucket_bytes` a process, while a
publication lasts. A bucket is packed while the one before it travels.

A stage and the receivers have a process group, which is used again until a process of it fails or is another one. The
table of contents of each bucket goes through a store that the driver serves; see `pentad.weights.transport.party`.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore

from pentad.weights.transport.groups import Backend
from pentad.weights.transport.packing import Checksums, Entry, PackedBucket, end_of
from pentad.weights.transport.party import Party, end, ending_store

_BUFFERS = 2


@dataclass(frozen=True)
class _Contents:
    """Of a bucket: its tensors; of the last, which is empty, the checksums of all."""

    entries: tuple[Entry, ...] = ()
    checksums: Mapping[str, int] | None = None
    version: int = -1


# What this process has said in its last publication, by store and stage.
_SAID: dict[tuple[str, int], list[str]] = {}


@dataclass(frozen=True)
class CollectiveChannel:
    """One publication of a set of weights over process groups.

    Attributes:
        kind: of the groups.
        address: `host:port` of the store that the driver serves.
        number: of the publication; groups are named by the one that they were made in.
        version: of the weights.
        dtype: what the weights are sent as.
        bucket_bytes: size of each of a process's two buffers; no tensor may be larger.
        stages: of the trainer's pipeline; each sends its own tensors.
        stage: whose tensors `send` is given.
        receivers: processes that take from one sender.
        deadline_s: longest wait for the others, in seconds.
        certify: take checksums of what is sent.
    """

    kind: Backend
    address: str
    number: int
    version: int
    dtype: torch.dtype
    bucket_bytes: int
    stages: int = 1
    stage: int = 0
    receivers: int = 1
    deadline_s: float = 600.0
    certify: bool = True

    def of_stage(self, stage: int) -> "CollectiveChannel":
        """This channel, for a sender of a pipeline stage."""
        return replace(self, stage=stage)

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        """Broadcast a stage's tensors to all receivers.

        Returns:
            the checksum of each tensor as it was sent; empty without `certify`.

        Raises:
            TransportError: a process failed, or did not answer in time, or a tensor is larger than a buffer.
        """
        device = _device(self.kind)
        title = f"sending weights from pipeline stage {self.stage}"
        party = self._party(self.stage, device, title, is_sender=True)
        try:
            party.join()
            sums = _Sender(self, party, device).send(tensors)
        except BaseException as error:
            party.fail(error)
            raise
        party.leave()
        return sums

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of all stages, on the current device, each valid until the next is taken."""
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        for bucket in self.reception(device, "engine").buckets():
            yield from bucket

    def close(self, reason: str) -> None:
        """End the publication; a process that still sends or receives fails with the reason."""
        end(ending_store(self.address, self.number), reason)

    def reception(self, device: torch.device, name: str) -> "CollectiveReception":
        """The receiving side, on a device, for a process that errors call `name`."""
        return CollectiveReception(self, device, name)

    def _party(self, stage: int, device: torch.device, title: str, *, is_sender: bool) -> Party:
        return Party(
            self.kind,
            self.address,
            self.number,
            stage,
            is_sender=is_sender,
            size=1 + self.receivers,
            device=device,
            deadline_s=self.deadline_s,
            title=title,
        )


class _Sender:
    """Packs and broadcasts, two buckets at a time."""

    def __init__(self, channel: CollectiveChannel, party: Party, device: torch.device) -> None:
        self._channel, self._party = channel, party
        self._buffers = [_buffer(channel, device) for _ in range(_BUFFERS)]
        self._works: list[Any] = [None] * _BUFFERS
        self._sums = Checksums()
        self._number = 0
        key = (channel.address, channel.stage)
        # All receivers are here, so none of them is still in an earlier publication.
        party.forget(_SAID.pop(key, []))
        self._said = _SAID[key] = []

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        party, most = self._party, self._channel.bucket_bytes
        bucket = PackedBucket(self._buffers[0])
        for name, tensor in tensors:
            party.phase, party.last = "packing", name
            source = tensor.detach().to(self._channel.dtype)
            size = source.numel() * source.element_size()
            if size > most:
                raise party.error(f"{name} has {size / 2**20:.0f} MiB, a buffer {most / 2**20:.0f}")
            if not bucket.has_room(source):
                self._dispatch(bucket)
                bucket = PackedBucket(self._free_buffer())
            bucket.add(name, source)
        if bucket.entries:
            self._dispatch(bucket)
        for _ in self._buffers:
            self._free_buffer()
            self._number += 1
        checksums = self._sums.collect()
        self._say(self._number - _BUFFERS, _Contents(checksums=checksums, version=self._channel.version))
        return checksums

    def _dispatch(self, bucket: PackedBucket) -> None:
        place = self._number % _BUFFERS
        if self._channel.certify:
            self._sums.add(bucket.entries, self._buffers[place])
        self._say(self._number, _Contents(tuple(bucket.entries), version=self._channel.version))
        self._works[place] = self._party.start(self._buffers[place][: bucket.used])
        self._number += 1

    def _free_buffer(self) -> Tensor:
        """The next buffer, when what it held has arrived."""
        place = self._number % _BUFFERS
        work, self._works[place] = self._works[place], None
        if work is not None:
            self._party.phase = "waiting for the engines to take a bucket"
            self._party.finish(work)
        return self._buffers[place]

    def _say(self, number: int, contents: _Contents) -> None:
        key = f"bucket/{number}"
        self._said.append(f"{self._channel.number}/{self._channel.stage}/{key}")
        self._party.set(key, pickle.dumps(contents))


class CollectiveReception:
    """One publication, as a receiver sees it.

    Attributes:
        checksums: of the tensors as they were sent; those of a stage are there once it has ended.
    """

    def __init__(self, channel: CollectiveChannel, device: torch.device, name: str) -> None:
        self.checksums: dict[str, int] = {}
        self._channel, self._device, self._name = channel, device, name

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        """All tensors of all stages, some at a time, valid until the next are asked for.

        Raises:
            TransportError: a process failed, or did not answer in time, or sends another version.
        """
        channel = self._channel
        device = self._device if channel.kind == "nccl" else torch.device("cpu")
        buffers = [_buffer(channel, device) for _ in range(_BUFFERS)]
        for stage in range(channel.stages):
            title = f"receiving weights of pipeline stage {stage} at {self._name}"
            party = channel._party(stage, device, title, is_sender=False)
            try:
                party.join()
                yield from self._stage(party, buffers)
            except BaseException as error:
                party.fail(error)
                raise
            party.leave()

    def _stage(self, party: Party, buffers: list[Tensor]) -> Iterator[list[tuple[str, Tensor]]]:
        number = 0
        contents, work = self._begin(party, number, buffers)
        while work is not None:
            party.phase = "receiving a bucket"
            party.finish(work)
            following = None
            if party.has(f"bucket/{number + 1}"):  # it travels while this one is loaded
                following = self._begin(party, number + 1, buffers)
            data = buffers[number % _BUFFERS].to(self._device)
            if contents.entries:
                party.last = contents.entries[-1].name
            party.phase = "loading a bucket"
            yield [(entry.name, entry.view(data)) for entry in contents.entries]
            number += 1
            contents, work = following or self._begin(party, number, buffers)
        self.checksums |= contents.checksums or {}

    def _begin(self, party: Party, number: int, buffers: list[Tensor]) -> tuple[_Contents, Any]:
        """Begin to receive a bucket; no work where there is none."""
        party.phase = "waiting for a bucket"
        contents: _Contents = pickle.loads(party.get(f"bucket/{number}"))
        if contents.version != self._channel.version:
            raise party.error(f"weights of version {contents.version} came instead of {self._channel.version}")
        size = end_of(contents.entries)
        if contents.checksums is not None:
            return contents, None
        if size > self._channel.bucket_bytes:
            raise party.error(f"the bucket ends before {contents.entries[-1].name} does")
        return contents, party.start(buffers[number % _BUFFERS][:size])


class CollectiveTransport:
    """Opens channels, and serves the store at which their processes meet.

    Args:
        kind: see `CollectiveChannel`, as are the others.
        host: address at which all processes reach this one.
    """

    def __init__(
        self,
        kind: Backend,
        host: str,
        dtype: torch.dtype,
        bucket_bytes: int,
        *,
        stages: int = 1,
        receivers: int = 1,
        deadline_s: float = 600.0,
        certify: bool = True,
    ) -> None:
        self.name: str = kind
        timeout = timedelta(seconds=deadline_s)
        self._store: TCPStore | None = TCPStore(host, 0, None, is_master=True, timeout=timeout, wait_for_workers=False)
        self._channel = CollectiveChannel(
            kind, f"{host}:{self._store.port}", 0, 0, dtype, bucket_bytes,
            stages=stages, receivers=receivers, deadline_s=deadline_s, certify=certify,
        )  # fmt: skip

    def open(self, version: int) -> CollectiveChannel:
        """The channel of the next publication."""
        self._channel = replace(self._channel, number=self._channel.number + 1, version=version)
        return self._channel

    def close(self) -> None:
        """Serve no more; a process that still sends or receives fails."""
        self._store = None


def _buffer(channel: CollectiveChannel, device: torch.device) -> Tensor:
    return torch.empty(channel.bucket_bytes, dtype=torch.uint8, device=device)


def _device(kind: Backend) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if kind == "nccl" else torch.device("cpu")
