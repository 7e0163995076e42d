"""Layouts and allocations as values.

Invariant: a `Layout` or an `Allocation` that exists is consistent in itself; `str` gives its canonical text, which
parses to an equal value. Whether a given model can use it is the matter of `pentad.layout.validate`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import prod
from typing import Literal, get_args

ENGINES = ("hf", "vllm", "sglang")
TRAINERS = ("megatron",)

TrainedRole = Literal["policy", "reference", "critic"]
ROLE_NAMES: dict[str, TrainedRole] = {"ref": "reference", "reference": "reference", "critic": "critic"}
"""Names of trainer components that are of a role; a trainer with any other name, or none, is the policy's."""

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
    """A rollout engine or a trainer, with its layout.

    `name` is a label of the user's choice, or None; that of a trainer may say whose it is (`ROLE_NAMES`).
    """

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

    @property
    def role(self) -> TrainedRole | None:
        """The model that a trainer is for; the policy's also has those models that have no component of their own."""
        return ROLE_NAMES.get(self.name or "", "policy") if self.is_trainer else None

    def __str__(self) -> str:
        return self.backend + (f"[{self.name}]" if self.name else "") + f":{self.layout}"


@dataclass(frozen=True)
class Allocation:
    """All components of a run. Components of one group share its devices; groups follow each other.

    There is a trainer of the policy, but for an evaluation that needs none (`engines_alone`).
    Reference and critic live in the ranks of the policy, unless they have a component of their own. Trainers of one
    group are the same ranks.

    Raises:
        ValueError: no component; no trainer of the policy, or two of one model; more than one rollout; a group whose
            components differ in size, or whose trainers in layout; a rollout that shares devices without the policy.
    """

    groups: tuple[tuple[Component, ...], ...]

    def __post_init__(self) -> None:
        roles = [component.role for component in self.components]
        alone = roles == [None]
        if (roles.count("policy") != 1 and not alone) or roles.count(None) > 1:
            raise ValueError("an allocation has one trainer of the policy and at most one rollout component")
        if any(roles.count(role) > 1 for role in get_args(TrainedRole)):
            raise ValueError("a model has one trainer component at most")
        for group in self.groups:
            if len({component.layout.world for component in group}) != 1:
                raise ValueError("components that share devices must have the same number of them")
            if len({component.layout for component in group if component.is_trainer}) > 1:
                raise ValueError("trainers that share devices must have the same layout")
            if len(group) > 1 and self.rollout in group and self.trainer not in group:
                raise ValueError("engines share devices with the policy, or with nothing")

    @property
    def components(self) -> tuple[Component, ...]:
        """All components, in order."""
        return tuple(component for group in self.groups for component in group)

    @property
    def trainer(self) -> Component:
        """The trainer of the policy, and of every model that has no component of its own."""
        return next(component for component in self.components if component.role == "policy")

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
        """Whether the policy's trainer and rollout engines share their devices."""
        return self.has_trainer and any(self.trainer in group and self.rollout in group for group in self.groups)

    def own(self, role: TrainedRole) -> Component | None:
        """The component that is written for a model; None where it has none of its own."""
        return next((component for component in self.components if component.role == role), None)

    def home(self, role: TrainedRole) -> Component:
        """The component whose ranks have a model: its own, or that of the policy, or the first on the same devices."""
        own = self.own(role) or self.trainer
        group = next(group for group in self.groups if own in group)
        return self.trainer if self.trainer in group else next(item for item in group if item.is_trainer)

    def homes(self, roles: Iterable[TrainedRole]) -> dict[Component, list[TrainedRole]]:
        """The roles of each trainer whose ranks have models; that of the policy first."""
        found: dict[Component, list[TrainedRole]] = {self.trainer: []}
        for role in roles:
            found.setdefault(self.home(role), []).append(role)
        return found

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

    def device_map(self, roles: Iterable[TrainedRole]) -> str:
        """Which devices have what, in words: `rollout 0; policy, reference 1-2; critic 3`."""
        ordered = [role for role in get_args(TrainedRole) if role in set(roles)]
        holders = {component: ", ".join(found) for component, found in self.homes(ordered).items()}
        if self.rollout is not None:
            holders[self.rollout] = "rollout"
        parts = []
        for component in self.components:
            if component in holders:
                devices = self.devices(component)
                last = f"-{devices[-1]}" if len(devices) > 1 else ""
                parts.append(f"{holders[component]} {devices[0]}{last}")
        return "; ".join(parts)

    def without(self, component: Component) -> "Allocation":
        """The same without one of its components."""
        groups = (tuple(item for item in group if item != component) for group in self.groups)
        return Allocation(tuple(group for group in groups if group))

    def __str__(self) -> str:
        return "+".join("|".join(map(str, group)) for group in self.groups)
