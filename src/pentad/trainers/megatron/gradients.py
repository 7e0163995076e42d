"""The gradients of a minibatch as one process would have them.

Invariant: what is yielded is the gradient of the loss over the whole minibatch, whatever the layout; nothing in
Megatron's buffers changes, so `step` after it does what it would have done before it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from pentad.trainers.megatron.lora import Adapter, reduce_expert_copies
from pentad.weights.mapping import WeightMapping


def finalize(
    adapters: Mapping[str, Adapter],
    groups: ProcessGroupCollection,
    models: list[Any],
    num_tokens: Tensor | None = None,
    **rest: Any,
) -> None:
    """What Megatron does after the last backward pass, and what it lacks for adapters of experts.

    Without its division by the tokens: the loss is divided by its denominator already.

    Args:
        adapters: of this rank.
        models: the rest is as Megatron calls it.
    """
    finalize_model_grads(models, None, **rest)
    reduce_expert_copies(adapters.values(), groups.expt_tp)


def reduced_gradients(models: Iterable[DistributedDataParallel]) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
    """The gradient of every parameter of this rank, summed over all ranks that saw other tokens.

    To be called between `finalize_model_grads` and the optimizer step. A collective of the data-parallel ranks, which
    must consume all of it. With the distributed optimizer each of them has reduced only its own equal part of every
    bucket; here the parts are put together again, one bucket in memory at a time.

    Args:
        models: the model chunks of this rank.

    Yields:
        parameter, and a float32 copy of its shape.
    """
    for model in models:
        for buffer in model.buffers + model.expert_parallel_buffers:
            group = buffer.data_parallel_group
            for bucket in buffer.buckets:
                whole = bucket.grad_data
                if model.ddp_config.use_distributed_optimizer and group.size() > 1:
                    whole = torch.empty_like(bucket.grad_data)
                    part = bucket.grad_data.chunk(group.size())[group.rank()]
                    torch.distributed.all_gather_into_tensor(whole, part, group=group)
                for parameter in bucket.params_list:
                    start, end = bucket.param_to_index[parameter]
                    yield parameter, whole[start:end].view(parameter.shape).to(torch.float32, copy=True)


def not_finite(parameters: Iterable[tuple[str, torch.nn.Parameter]], mapping: WeightMapping) -> list[str]:
    """Hugging Face names of this rank's tensors whose gradient has an element that is not finite.

    Args:
        parameters: under their Megatron names in the whole model, after `finalize_model_grads`.
    """
    return [
        name
        for megatron_name, parameter in parameters
        if parameter.requires_grad and not bool(parameter.main_grad.isfinite().all())
        for name in mapping.rule_of(megatron_name)[1]
    ]
