"""Which GPU of a cluster each device of an allocation is.

Invariant: ranks that exchange every layer's activations (the groups of t and of x) share a machine, or the run is
refused; the trainer's ranks fill machines one after the other, with whole groups, before anything else is placed.
"""

import math
from collections import Counter
from collections.abc import Sequence

from pentad.errors import UserError
from pentad.layout import Allocation, Layout


def place(allocation: Allocation, machines: Sequence[str]) -> list[int]:
    """The bundle of each device.

    Args:
        allocation: what is to be placed; it has as many devices as there are bundles.
        machines: the machine that each bundle, of one GPU, is on.

    Returns:
        for each device of the allocation the index of its bundle; each bundle once.

    Raises:
        UserError: a group of tensor-parallel ranks would be on more than one machine.
    """
    sizes = Counter(machines)
    # Full machines first: groups whose sizes are powers of two then fit wherever they can.
    bundles = sorted(range(len(machines)), key=lambda index: (-sizes[machines[index]], machines[index], index))
    trainer = allocation.devices(allocation.trainer)
    others = [device for device in range(allocation.world_size) if device not in trainer]
    layout = allocation.trainer.layout
    bundles = _whole_groups_first(bundles, machines, math.lcm(layout.tensor, layout.expert_tensor))
    found = dict(zip([*trainer, *others], bundles, strict=True))
    _check(allocation, [machines[found[device]] for device in trainer])
    return [found[device] for device in range(allocation.world_size)]


def _whole_groups_first(bundles: Sequence[int], machines: Sequence[str], size: int) -> list[int]:
    """Of each machine as many bundles as make whole groups of `size`, in the given order; then what is over."""
    left = {machine: count // size * size for machine, count in Counter(machines).items()}
    first, over = [], []
    for bundle in bundles:
        machine = machines[bundle]
        (first if left[machine] else over).append(bundle)
        left[machine] = max(left[machine] - 1, 0)
    return first + over


def _check(allocation: Allocation, machines: Sequence[str]) -> None:
    """Ranks are numbered t first, those of the experts x first."""
    layout: Layout = allocation.trainer.layout
    for letter, size in (("t", layout.tensor), ("x", layout.expert_tensor)):
        if not _crosses(machines, size):
            continue
        fits = max(part for part in range(1, size) if size % part == 0 and not _crosses(machines, part))
        gpus = ", ".join(str(count) for count in sorted(Counter(machines).values(), reverse=True))
        raise UserError(
            f"allocation {allocation}: groups of {letter}{size} would cross machines (of {gpus} GPUs for the trainer)",
            f"use {letter}{fits}, with p, c or d between the machines",
        )


def _crosses(machines: Sequence[str], size: int) -> bool:
    """Whether a group of consecutive ranks is on more than one machine."""
    return any(len(set(machines[start : start + size])) > 1 for start in range(0, len(machines), size))
