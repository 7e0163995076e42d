"""Weight channels with faults, around real ones."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from pentad.weights.transport.protocol import Transport, WeightChannel


@dataclass(frozen=True)
class FaultyChannel:
    """A channel whose receivers see one tensor wrong, or wait at it.

    Attributes:
        fault: what happens to the tensor.
        tensor: its name.
        release: a file that ends the waiting.
    """

    channel: WeightChannel
    fault: Literal["changed", "late"]
    tensor: str
    release: Path

    def of_stage(self, stage: int) -> "FaultyChannel":
        return replace(self, channel=self.channel.of_stage(stage))

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> Mapping[str, int]:
        return self.channel.send(tensors)

    def receive(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.channel.receive():
            if name == self.tensor and self.fault == "changed":
                yield name, tensor.flip(0)
                continue
            yield name, tensor
            while name == self.tensor and not self.release.exists():
                time.sleep(0.01)

    def close(self, reason: str) -> None:
        self.channel.close(reason)


@dataclass
class FaultyTransport:
    """Opens faulty channels; see `FaultyChannel`."""

    transport: Transport
    fault: Literal["changed", "late"]
    tensor: str
    release: Path
    name: str = "faulty"

    def open(self, version: int) -> FaultyChannel:
        return FaultyChannel(self.transport.open(version), self.fault, self.tensor, self.release)
