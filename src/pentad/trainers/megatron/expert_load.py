"""How evenly tokens are spread over experts.

Invariant: the figures are those of the whole minibatch, on every rank. They do not depend on recomputation, which
only counts every token twice, nor on the layout, but for the few tokens that make a pack divisible.
"""

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection

from pentad.trainers.megatron.experts import GroupedExperts


def reset_expert_load(chunks: list[GPTModel]) -> None:
    """Begin to count anew."""
    for experts in _layers(chunks):
        experts.load.zero_()


def expert_load(chunks: list[GPTModel], groups: ProcessGroupCollection, num_experts: int) -> dict[str, float]:
    """Load of the fullest and of the emptiest expert over the mean of its layer, each of the layer where it is worst.

    Only layers with experts count; a pipeline stage may have none. A collective of all ranks.

    Returns:
        `moe/load_max` (1 is even, `num_experts / experts a token` the worst) and `moe/load_min` (0: an expert had no
        token).
    """
    layers = list(_layers(chunks))
    device = next(chunks[0].parameters()).device
    loads = torch.zeros(len(layers), num_experts, device=device)
    for place, experts in enumerate(layers):
        first = groups.ep.rank() * len(experts.load)
        loads[place, first : first + len(experts.load)] = experts.load
    # Ranks of `expt_tp` all see the same tokens, so the sum counts each equally often.
    for group in (groups.tp_ep, groups.expt_dp):
        torch.distributed.all_reduce(loads, group=group)
    extremes = torch.full((2,), -torch.inf, device=device)
    if layers:
        relative = loads / loads.mean(dim=1, keepdim=True)
        extremes = torch.stack([relative.max(), -relative.min()])
    torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX, group=groups.pp)
    most, least = extremes.tolist()
    return {"moe/load_max": most, "moe/load_min": -least}


def _layers(chunks: list[GPTModel]) -> list[GroupedExperts]:
    return [module for chunk in chunks for module in chunk.modules() if isinstance(module, GroupedExperts)]
