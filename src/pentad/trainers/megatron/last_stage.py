"""What only the last pipeline stage knows, on every rank.

Invariant: every rank gets the same numbers: sums over all microbatches of all data-parallel ranks.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from pentad.algorithms.protocol import Mean
from pentad.errors import UserError

_NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)+")


def is_last_stage(groups: ProcessGroupCollection) -> bool:
    """Whether this rank is of the last pipeline stage, which computes losses."""
    return groups.pp.rank() == groups.pp.size() - 1


def send_from_last_stage(tensor: Tensor, groups: ProcessGroupCollection) -> None:
    """Give every stage the last one's values, in place."""
    if groups.pp.size() > 1:
        torch.distributed.broadcast(tensor, group=groups.pp, group_src=groups.pp.size() - 1)


def as_pairs(means: Mapping[str, Mean]) -> dict[str, Tensor]:
    """Float64 `[2]` of each: total and count.

    Raises:
        UserError: a loss reports a metric under a name that cannot be one.
    """
    for name in means:
        if not _NAME.fullmatch(name):
            raise UserError(f"the loss reports a metric {name!r}", "name it group/name, as train/bonus")
    return {
        name: torch.stack([mean.total.double(), torch.as_tensor(mean.count, device=mean.total.device).double()])
        for name, mean in means.items()
    }


def sum_over_microbatches(
    results: list[dict[str, Tensor]], groups: ProcessGroupCollection, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Total and count of each metric. Ranks and microbatches may have metrics of different names.

    Args:
        results: of each microbatch of this rank, what `as_pairs` gave; empty but on the last stage.
    """
    names: list[Any] = [sorted({name for result in results for name in result})]
    if is_last_stage(groups):
        found: list[Any] = [None] * groups.dp.size()
        torch.distributed.all_gather_object(found, names[0], group=groups.dp)
        names = [sorted({name for part in found for name in part})]
    if groups.pp.size() > 1:
        torch.distributed.broadcast_object_list(names, group=groups.pp, group_src=groups.pp.size() - 1)
    sums = torch.zeros(len(names[0]), 2, dtype=torch.float64, device=device)
    absent = torch.zeros(2, dtype=torch.float64, device=device)
    for result in results:
        sums += torch.stack([result.get(name, absent) for name in names[0]])
    torch.distributed.all_reduce(sums, group=groups.dp)
    send_from_last_stage(sums, groups)
    return {name: (total, divisor) for name, (total, divisor) in zip(names[0], sums.tolist(), strict=True)}
