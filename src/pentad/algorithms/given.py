"""Algorithms that learn from responses which the data has: nothing is sampled, so nothing is credited.

Invariant: such an algorithm is nothing but its loss.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pentad.algorithms.protocol import Loss
from pentad.config.schema.algorithms.base import AlgorithmSettings, Role
from pentad.samples.batch import Batch
from pentad.samples.trajectory import Trajectory


class Given[S: AlgorithmSettings]:
    """The algorithm of a loss.

    Attributes:
        loss: makes it from the settings.
    """

    loss: ClassVar[Callable[[Any], Loss]]

    def __init__(self, settings: S) -> None:
        self._settings = settings

    def admit(self, group: Sequence[Trajectory]) -> bool:
        return True

    def credit(self, batch: Batch) -> Batch:
        return batch

    def losses(self) -> Mapping[Role, Loss]:
        return {"policy": type(self).loss(self._settings)}
