"""Channels between processes of one machine: CUDA IPC where both sides use the same GPU, host memory otherwise.

Invariant: a receiver takes from the sender on its own GPU (`ipc`) or from the only one (`shared`) of every pipeline
stage, in the order of the stages. Memory beside the model is two buffers of `bucket_bytes` a sender, which keeps those
in host memory for the next publication.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pentad.errors import UserError
from pentad.weights.transport.memory import CudaMemory, HostMemory, device_uuid, open_cuda, open_host
from pentad.weights.transport.sockets import CLOSED, BucketReceiver, BucketSender

_SHORT = 30
Kind = Literal["ipc", "shared"]

# What senders of this process have used, and may use again.
_HOST: list[HostMemory] = []


@dataclass(frozen=True)
class LocalChannel:
    """One publication of a set of weights on one machine.

    Attributes:
        kind: `ipc`: through the memory of the GPU that both sides use; `shared`: through host memory.
        folder: where the sockets are; both sides see it.
        key: that both sides know.
        version: of the weights.
        dtype: what the weights are sent as.
        bucket_bytes: size of each of a sender's two buffers; no tensor may be larger.
        stages: of the trainer's pipeline; each sends its own tensors.
        stage: whose tensors `send` is given.
        receivers: processes that take from one sender.
        deadline_s: longest wait for the other side, in seconds.
        certify: take checksums of what is sent.
    """

    kind: Kind
    folder: str
    key: bytes = field(repr=False)
    version: int
    dtype: torch.dtype
    bucket_bytes: int
    stages: int = 1
    stage: int = 0
    receivers: int = 1
    deadline_s: float = 600.0
    certify: bool = True

    def of_stage(self, stage: int) -> "LocalChannel":
        """This channel, for a sender of a pipeline stage."""
        return replace(self, stage=stage)

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        """Send a stage's tensors to all receivers.

        Returns:
            the checksum of each tensor as it was sent; empty without `certify`.

        Raises:
            TransportError: a receiver failed, or did not answer in time, or a tensor is larger than a buffer.
        """
        device = torch.device("cuda", torch.cuda.current_device()) if self.kind == "ipc" else torch.device("cpu")
        # Of publications that failed, receivers may still read.
        memory = CudaMemory(device) if self.kind == "ipc" else _HOST.pop() if _HOST else HostMemory()
        sender = BucketSender(
            self._path(device, self.stage),
            self.key,
            memory,
            self.bucket_bytes,
            receivers=self.receivers,
            deadline_s=self.deadline_s,
            certify=self.certify,
            name=f"pipeline stage {self.stage}",
        )
        sums = sender.send(tensors, self.dtype, self.version)
        if isinstance(memory, HostMemory):
            _HOST.append(memory)
        return sums

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of all stages, on the current device, each valid until the next is taken."""
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        for bucket in self.reception(device, "engine").buckets():
            yield from bucket

    def close(self, reason: str) -> None:
        """End the publication; a process of this machine that still sends or receives fails with the reason."""
        whole = os.path.join(self.folder, CLOSED)
        with contextlib.suppress(FileNotFoundError):
            with open(f"{whole}.part", "w") as file:
                file.write(reason)
            os.replace(f"{whole}.part", whole)  # who looks sees all of it

    def reception(self, device: torch.device, name: str) -> "Reception":
        """The receiving side, on a device, for a process that errors call `name`."""
        return Reception(self, device, name)

    def receiver(self, stage: int, device: torch.device, name: str) -> BucketReceiver:
        """What takes one stage's tensors."""
        opener = partial(open_cuda if self.kind == "ipc" else open_host, device=device)
        return BucketReceiver(self._path(device, stage), self.key, opener, self.deadline_s, name)

    def _path(self, device: torch.device, stage: int) -> str:
        where = device_uuid(device) if self.kind == "ipc" else "host"
        return os.path.join(self.folder, f"{where}-{stage}")


class Reception:
    """One publication, as a receiver sees it.

    Attributes:
        checksums: of the tensors as they were sent; those of a stage are there once it has ended.
    """

    def __init__(self, channel: LocalChannel, device: torch.device, name: str) -> None:
        self.checksums: dict[str, int] = {}
        self._channel, self._device, self._name = channel, device, name

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        """All tensors of all stages, some at a time, valid until the next are asked for.

        Raises:
            TransportError: a sender failed, or did not answer in time, or sends another version.
        """
        for stage in range(self._channel.stages):
            receiver = self._channel.receiver(stage, self._device, self._name)
            yield from receiver.buckets()
            self.checksums |= receiver.checksums


def _short_folder() -> str:
    """Where sockets can be: a path of one has at most 107 bytes, of which the names below this take up to 77."""
    for folder in (tempfile.gettempdir(), "/tmp", "/dev/shm"):
        if len(os.fsencode(folder)) <= _SHORT and os.access(folder, os.W_OK):
            return folder
    raise UserError(
        f"weights go to the engines through sockets, and {tempfile.gettempdir()} is too long a path for them",
        f"set TMPDIR to a directory whose path has at most {_SHORT} characters",
    )


class LocalTransport:
    """Opens channels of one kind on this machine.

    Args:
        kind: see `LocalChannel`, as are the others.
    """

    def __init__(
        self,
        kind: Kind,
        dtype: torch.dtype,
        bucket_bytes: int,
        *,
        stages: int = 1,
        receivers: int = 1,
        deadline_s: float = 600.0,
        certify: bool = True,
    ) -> None:
        self.name: str = kind
        self._channel = LocalChannel(
            kind=kind, folder="", key=secrets.token_bytes(16), version=0, dtype=dtype, bucket_bytes=bucket_bytes,
            stages=stages, receivers=receivers, deadline_s=deadline_s, certify=certify,
        )  # fmt: skip
        self._folder = tempfile.TemporaryDirectory(prefix="pentad-", dir=_short_folder())
        self._last: str | None = None

    def open(self, version: int) -> LocalChannel:
        """The channel of the next publication; one that failed leaves nothing in the way of it."""
        if self._last is not None:
            shutil.rmtree(self._last, ignore_errors=True)
        self._last = folder = tempfile.mkdtemp(prefix=f"{version}-", dir=self._folder.name)
        return replace(self._channel, folder=folder, version=version)

    def close(self) -> None:
        """Remove the sockets' folder."""
        self._folder.cleanup()
