"""Which GPU of a cluster each device of an allocation is.

Invariant: ranks that exchange every layer's activations (the groups of t and of x) share a machine, or the run is
refused, and so do the GPUs of an engine; trainers' ranks fill machines one after the other, with whole groups: those of
the policy first, then those of a reference or critic of its own; engines come last, but where their groups are larger.
Groups of c and of e may cross machines, and are named then.
"""

import math
from collections import Counter
from collections.abc import Sequence

from pentad.errors import UserError
from pentad.layout import Allocation, Component

# Groups that a message names.
_SHOWN = 4


def place(allocation: Allocation, machines: Sequence[str]) -> list[int]:
    """The bundle of each device.

    Args:
        allocation: what is to be placed; it has as many devices as there are bundles.
        machines: the machine that each bundle, of one GPU, is on.

    Returns:
        for each device of the allocation the index of its bundle; each bundle once.

    Raises:
        UserError: a group of tensor-parallel ranks, or an engine, would be on more than one machine.
    """
    sizes = Counter(machines)
    # Full machines first: groups whose sizes are powers of two then fit wherever they can.
    bundles = sorted(range(len(machines)), key=lambda index: (-sizes[machines[index]], machines[index], index))
    rollout = allocation.rollout
    engine = 1 if rollout is None else rollout.layout.tensor
    parts = []
    for component in trainer_components(allocation):
        together = engine if rollout is not None and _share(allocation, component, rollout) else 1
        layout = component.layout
        size = math.lcm(layout.tensor, layout.expert_tensor, together)
        parts.append((list(allocation.devices(component)), size))
    trained = {device for devices, _ in parts for device in devices}
    parts.append(([device for device in range(allocation.world_size) if device not in trained], engine))
    found: dict[int, int] = {}
    # The larger groups have the choice; of equal ones, the policy.
    for devices, size in sorted(parts, key=lambda part: -part[1]):
        bundles = _whole_groups_first(bundles, machines, size)
        found |= dict(zip(devices, bundles, strict=False))
        bundles = bundles[len(devices) :]
    for component in trainer_components(allocation):
        _check(allocation, component, [machines[found[device]] for device in allocation.devices(component)])
    if rollout is not None:
        _check_engines(allocation, rollout, [machines[found[device]] for device in allocation.devices(rollout)])
    return [found[device] for device in range(allocation.world_size)]


def trainer_components(allocation: Allocation) -> list[Component]:
    """One trainer of each group that has one; that of the policy first."""
    if not allocation.has_trainer:
        return []
    return list(allocation.homes(component.role for component in allocation.components if component.role is not None))


def crossing_groups(component: Component, machines: Sequence[str]) -> list[str]:
    """A message for each kind of groups that crosses machines and may, but is slower there.

    Args:
        component: a trainer that is placed.
        machines: the machine of each of its ranks.

    Returns:
        messages that name the groups by their trainer ranks: context-parallel ones, which exchange a part of every
        attention layer's activations, and expert-parallel ones, which send tokens to their experts.
    """
    layout = component.layout
    kinds = (
        ("context", f"c{layout.context}", layout.context, layout.tensor, "the heads of every attention layer"),
        ("expert", f"e{layout.expert}", layout.expert, layout.expert_tensor, "the tokens of every mixture layer"),
    )
    messages = []
    for kind, letters, size, stride, what in kinds:
        groups = [group for group in _groups(len(machines), size, stride) if _spread(machines, group) > 1]
        if not groups:
            continue
        shown = "; ".join(
            f"ranks {', '.join(map(str, group))} on {_spread(machines, group)} machines" for group in groups[:_SHOWN]
        )
        more = f"; and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
        whose = "" if component.role == "policy" else f" of the {component.role}"
        messages.append(
            f"{kind}-parallel groups{whose} ({letters}) cross machines: {shown}{more}; {what} pass between them"
        )
    return messages


def _groups(world: int, size: int, stride: int) -> list[range]:
    """Groups of `size` ranks that are `stride` apart; together they are all ranks."""
    block = size * stride
    return [range(first + place, first + block, stride) for first in range(0, world, block) for place in range(stride)]


def _spread(machines: Sequence[str], group: Sequence[int]) -> int:
    return len({machines[rank] for rank in group})


def _whole_groups_first(bundles: Sequence[int], machines: Sequence[str], size: int) -> list[int]:
    """Of each machine as many bundles as make whole groups of `size`, in the given order; then what is over."""
    counts = Counter(machines[bundle] for bundle in bundles)
    left = {machine: count // size * size for machine, count in counts.items()}
    first, over = [], []
    for bundle in bundles:
        machine = machines[bundle]
        (first if left[machine] else over).append(bundle)
        left[machine] = max(left[machine] - 1, 0)
    return first + over


def _share(allocation: Allocation, one: Component, other: Component) -> bool:
    return any(one in group and other in group for group in allocation.groups)


def _check(allocation: Allocation, component: Component, machines: Sequence[str]) -> None:
    """Ranks are numbered t first, those of the experts x first."""
    layout = component.layout
    whose = "trainer" if component.role == "policy" else component.role
    for letter, size in (("t", layout.tensor), ("x", layout.expert_tensor)):
        if not _crosses(machines, size):
            continue
        fits = max(part for part in range(1, size) if size % part == 0 and not _crosses(machines, part))
        gpus = ", ".join(str(count) for count in sorted(Counter(machines).values(), reverse=True))
        raise UserError(
            f"allocation {allocation}: groups of {letter}{size} would cross machines (of {gpus} GPUs for the {whose})",
            f"use {letter}{fits}, with p, c or d between the machines",
        )


def _check_engines(allocation: Allocation, rollout: Component, machines: Sequence[str]) -> None:
    """The GPUs of one engine follow each other."""
    if _crosses(machines, size := rollout.layout.tensor):
        raise UserError(
            f"allocation {allocation}: an engine of t{size} would be on more than one machine",
            "use a smaller t for the engines, or machines with as many free GPUs",
        )


def _crosses(machines: Sequence[str], size: int) -> bool:
    """Whether a group of consecutive ranks is on more than one machine."""
    return any(len(set(machines[start : start + size])) > 1 for start in range(0, len(machines), size))
