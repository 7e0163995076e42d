"""Ways for weights from the ranks of a trainer to engines.

Invariant: a channel carries one publication. Trainer ranks send while engines receive; what is received is bit-equal
to what was sent, cast to the dtype that the channel was opened with.

Example::

    channel = transport.open(version)
    sent = channel.of_stage(stage).send(model.weights())     # in a trainer rank, while
    engine.load(channel.receive())                          # in an engine
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class TransportTimeoutError(TimeoutError):
    """A peer did not send or take a tensor in time. The message names the tensor."""


class TransportError(RuntimeError):
    """Weights could not be moved. The message names the process, the phase and the last tensor."""


class WeightChannel(Protocol):
    """One publication of a set of weights. It can be pickled and sent to the processes that use it."""

    def of_stage(self, stage: int) -> "WeightChannel":
        """This channel, for the sender of a pipeline stage."""
        ...

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        """Send whole tensors under their Hugging Face names; called by one trainer rank of each pipeline stage.

        Returns:
            the checksum of each tensor as it was sent.

        Raises:
            TransportError, TransportTimeoutError: the receivers did not take what was sent.
        """
        ...

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of all senders, each valid until the next is taken. It blocks the thread that it runs in.

        Raises:
            TransportError, TransportTimeoutError: nothing more was sent, and it was not all.
        """
        ...

    def close(self, reason: str) -> None:
        """End the publication; a process that still sends or receives fails with the reason. It does not wait."""
        ...


class Reception(Protocol):
    """One publication, as a receiver sees it.

    Attributes:
        checksums: of the tensors as they were sent; those of a stage are there once it has ended.
    """

    checksums: dict[str, int]

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        """All tensors of all stages, some at a time, valid until the next are asked for.

        Raises:
            TransportError: a sender failed, or did not answer in time, or sends another version.
        """
        ...


@runtime_checkable
class DirectChannel(WeightChannel, Protocol):
    """A channel that many processes of an engine can receive from, each on its own device.

    Attributes:
        certify: checksums are taken of what is sent.
    """

    @property
    def certify(self) -> bool: ...

    def reception(self, device: torch.device, name: str) -> Reception:
        """The receiving side, on a device, for a process that errors call `name`."""
        ...


class Transport(Protocol):
    """A way of moving weights, chosen before the run by what trainer and engines allow."""

    name: str

    def open(self, version: int) -> WeightChannel:
        """The channel of the next publication."""
        ...
