"""Whether ranks that should hold the same weights still do.

Invariant: after every optimizer step, all copies of a weight are equal bit for bit: the copies of data- and
context-parallel ranks (of experts, those of the expert-data-parallel ranks), the copies that tensor-parallel ranks
have of what is not split (norms, routers), and the last stage's copy of a tied embedding. The check sends one
checksum of 8 bytes a parameter, and changes nothing.
"""

from collections import Counter
from collections.abc import Iterable

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch.distributed import ProcessGroup

from pentad.weights.checksum import checksum

_SHOWN = 3


class ReplicaError(RuntimeError):
    """Copies of a weight differ. The message names the tensors and the ranks."""


def check_replicas(
    parameters: Iterable[tuple[str, torch.nn.Parameter]], groups: ProcessGroupCollection, *, tied: bool
) -> None:
    """Compare the copies of all weights of one model.

    A collective of all ranks of the trainer.

    Args:
        parameters: this rank's, under their Megatron names in the whole model.
        tied: the output layer is the embedding; the last of several stages has a copy of it.

    Raises:
        ReplicaError: copies differ, on the ranks of the group that has them.
    """
    held = dict(parameters)
    # Megatron marks what is held in the buffers of experts, and what tensor-parallel ranks have a part of.
    experts = [name for name, parameter in held.items() if not getattr(parameter, "allreduce", True)]
    whole = [name for name, parameter in held.items() if not getattr(parameter, "tensor_model_parallel", False)]
    dense = [name for name in whole if name not in experts]
    kinds = [
        ("data-parallel", groups.dp_cp, [name for name in held if name not in experts]),
        ("expert-data-parallel", groups.expt_dp, experts),
        ("tensor-parallel", groups.tp, dense),
        ("expert-tensor-parallel", groups.expt_tp, [name for name in whole if name in experts]),
    ]
    if tied and groups.pp.size() > 1 and groups.pp.rank() in (0, groups.pp.size() - 1):
        copies = [name for name in ("embedding.word_embeddings.weight", "output_layer.weight") if name in held]
        kinds.append(("embedding", groups.embd, copies))
    kinds = [(kind, group, names) for kind, group, names in kinds if names and group.size() > 1]
    sums = {name: checksum(held[name]) for name in {name for _, _, names in kinds for name in names}}
    problems = []
    for kind, group, names in kinds:
        mine = torch.tensor([_signed(sums[name]) for name in names], device=held[names[0]].device)
        problems += _compare(names, mine, group, kind)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ReplicaError(f"copies of weights have drifted apart: {'; '.join(problems[:_SHOWN])}{more}")


def _compare(names: list[str], mine: Tensor, group: ProcessGroup, kind: str) -> list[str]:
    """What differs between the ranks of a group.

    Args:
        mine: int64 `[names]`, the checksums of this rank.
    """
    gathered = [torch.empty_like(mine) for _ in range(group.size())]
    torch.distributed.all_gather(gathered, mine, group=group)
    table = torch.stack(gathered).cpu()  # [ranks, names]
    ranks = torch.distributed.get_process_group_ranks(group)
    return [
        f"{name} on {kind} ranks {_parties(column.tolist(), ranks)}"
        for name, column in zip(names, table.t(), strict=True)
        if bool((column != column[0]).any())
    ]


def _parties(values: list[int], ranks: list[int]) -> str:
    """The ranks, those that agree joined by `=` as in `0 = 1 = 3, 2`, the largest party first."""
    return ", ".join(
        " = ".join(str(rank) for rank, value in zip(ranks, values, strict=True) if value == party)
        for party, _ in Counter(values).most_common()
    )


def _signed(value: int) -> int:
    """The same 64 bits as a number that int64 can hold."""
    return value - (1 << 64) if value >= 1 << 63 else value
