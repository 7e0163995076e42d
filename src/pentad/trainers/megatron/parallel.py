"""Joining the other ranks: torch.distributed and Megatron's process groups.

Invariant: a rank's place in the layout is read from these groups and never computed from its number.
"""

from datetime import timedelta

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch.distributed import Store

from pentad.layout import Layout
from pentad.platform.device import Platform


def join_ranks(platform: Platform, rank: int, world_size: int, meeting: str | Store, deadline_s: float) -> None:
    """Enter torch.distributed.

    Args:
        meeting: where the ranks meet: a store that they share, or `file:///path`.
        deadline_s: longest time of any collective, in seconds.
    """
    torch.distributed.init_process_group(
        platform.backend,
        **({"init_method": meeting} if isinstance(meeting, str) else {"store": meeting}),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=deadline_s),
        # No device_id: with it, each of Megatron's thirty or so groups gets an NCCL communicator at once, used or not,
        # which takes 10 s. The device is the current one.
    )


def make_groups(layout: Layout, seed: int, deadline_s: float = 1800.0) -> ProcessGroupCollection:
    """Megatron's process groups for a layout, in place of any that were there.

    Args:
        seed: of the random numbers that differ between model-parallel ranks.
    """
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
        distributed_timeout_minutes=max(1, round(deadline_s / 60)),
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(seed)
    return ProcessGroupCollection.use_mpu_process_groups()
