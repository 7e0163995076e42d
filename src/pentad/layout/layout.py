"""Layouts and allocations as values.

Invariant: a `Layout` or an `Allocation` that exists is consistent in itself; `str` gives its canonical text, which
parses to an equal value. Whether a given model can use it is the matter of `pentad.layout.validate`.
"""

from dataclasses import dataclass, fields
from math import prod

ENGINES = ("hf", "vllm", "sglang")
TRAINERS = ("megatron",)

LETTERS = {
    "d": "data",
    "t": "tensor",
    "p": "pipeline",
    "c": "context",
    "e": "expert",
    "x": "expert_tensor",
    "v": "virtual",
}
_PRINT_ORDER = "dtpvcex"


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions of one component.

    `expert` and `expert_tensor` regroup the devices of a pipeline stage for the experts, and add none.

    Attributes:
        data: replicas of the model (d).
        tensor: devices that split each matrix (t); sequence parallelism is on when above 1.
        pipeline: stages (p).
        context: devices that split each sequence (c).
        expert: devices that the experts are spread over (e).
        expert_tensor: devices that split the matrices of one expert (x).
        virtual: pieces of the model that each stage holds, interleaved (v).

    Raises:
        ValueError: a size below 1; `virtual` without `pipeline`; expert sizes that do not divide the devices.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    virtual: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise ValueError(f"{item.name} must be 1 or more, not {getattr(self, item.name)}")
        if self.virtual > 1 and self.pipeline == 1:
            raise ValueError("virtual stages need pipeline above 1")
        if self.world % (self.pipeline * self.expert * self.expert_tensor):
            raise ValueError(f"pipeline * expert * expert_tensor does not divide the {self.world} devices")

    @property
    def world(self) -> int:
        """Number of devices."""
        return prod((self.data, self.tensor, self.pipeline, self.context))

    @property
    def expert_data(self) -> int:
        """Replicas of each expert."""
        return self.world // (self.pipeline * self.expert * self.expert_tensor)

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations between tensor-parallel regions are split along the sequence."""
        return self.tensor > 1

    def __str__(self) -> str:
        sizes = ((letter, getattr(self, LETTERS[letter])) for letter in _PRINT_ORDER)
        return "".join(f"{letter}{size}" for letter, size in sizes if size > 1) or "d1"


@dataclass(frozen=True)
class Component:
    """A rollout engine or a trainer, with its layout. `name` is a label of the user's choice, or None."""

    name: str | None
    backend: str
    layout: Layout

    def __post_init__(self) -> None:
        if self.backend not in ENGINES + TRAINERS:
            raise ValueError(f"unknown backend {self.backend}")

    @property
    def is_trainer(self) -> bool:
        """Whether this is the trainer, as opposed to a rollout engine."""
        return self.backend in TRAINERS

    def __str__(self) -> str:
        return self.backend + (f"[{self.name}]" if self.name else "") + f":{self.layout}"


@dataclass(frozen=True)
class Allocation:
    """All components of a run. Components of one group share its devices; groups follow each other.

    There is one trainer, but for an evaluation that needs none (`engines_alone`).

    Raises:
        ValueError: no component; more than one trainer; more than one rollout; a group whose components differ in size.
    """

    groups: tuple[tuple[Component, ...], ...]

    def __post_init__(self) -> None:
        trainers = sum(component.is_trainer for component in self.components)
        if trainers > 1 or len(self.components) - trainers > 1 or not self.components:
            raise ValueError("an allocation has at most one trainer and at most one rollout component")
        if any(len({component.layout.world for component in group}) != 1 for group in self.groups):
            raise ValueError("components that share devices must have the same number of them")

    @property
    def components(self) -> tuple[Component, ...]:
        """All components, in order."""
        return tuple(component for group in self.groups for component in group)

    @property
    def trainer(self) -> Component:
        """The trainer."""
        return next(component for component in self.components if component.is_trainer)

    @property
    def rollout(self) -> Component | None:
        """The rollout engines, if there are any."""
        return next((component for component in self.components if not component.is_trainer), None)

    @property
    def has_trainer(self) -> bool:
        """Whether there is a trainer."""
        return any(component.is_trainer for component in self.components)

    def engines_alone(self) -> "Allocation":
        """The rollout engines on devices of their own, without a trainer.

        Raises:
            ValueError: there are none.
        """
        if self.rollout is None:
            raise ValueError(f"{self} has no rollout engines")
        return Allocation(((self.rollout,),))

    @property
    def world_size(self) -> int:
        """Number of devices of the whole run."""
        return sum(group[0].layout.world for group in self.groups)

    @property
    def colocated(self) -> bool:
        """Whether trainer and rollout engines share their devices."""
        return any(len(group) > 1 for group in self.groups)

    def devices(self, component: Component) -> range:
        """The devices of a component, counted from 0 over the whole run.

        Raises:
            ValueError: the component is not in this allocation.
        """
        start = 0
        for group in self.groups:
            if component in group:
                return range(start, start + component.layout.world)
            start += group[0].layout.world
        raise ValueError(f"{component} is not in {self}")

    def __str__(self) -> str:
        return "+".join("|".join(map(str, group)) for group in self.groups)
