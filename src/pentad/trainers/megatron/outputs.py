"""What the last pipeline stage makes of hidden states: log-probs and entropies, or a critic's values.

Invariant: every rank of a tensor- and context-parallel group gets the same numbers for all tokens of the microbatch, so
each computes the whole loss; the gradient of a token goes to the rank that computed it.
"""

from collections.abc import Iterable

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

from pentad.algorithms.protocol import Outputs
from pentad.kernels.logprob import vocab_parallel_logprobs
from pentad.kernels.selection import Kernels
from pentad.samples.batch import Batch
from pentad.trainers.megatron.microbatch import Microbatch
from pentad.trainers.megatron.rows import take_rows
from pentad.trainers.megatron.value_head import ValueHead


def logprobs_of(
    hidden: Tensor,
    weight: Tensor,
    microbatch: Microbatch,
    groups: ProcessGroupCollection,
    kernels: Kernels,
    *,
    sequence_parallel: bool,
    temperature: float,
    vocab_size: int,
    differentiates_entropy: bool,
) -> Tensor:
    """Log-probs and entropies of the tokens of a microbatch.

    Args:
        hidden: `[t / (tensor * context), 1, hidden]`; without sequence parallelism `[t / context, 1, hidden]`.
        weight: this rank's rows of the output layer.

    Returns:
        float32 `[2, t]`: log-probs (differentiable) and entropies, 0 where none is wanted.
    """
    if sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, group=groups.tp)
    targets = microbatch.targets
    logprobs, entropies = vocab_parallel_logprobs(
        take_rows(hidden[:, 0], microbatch.rows),
        weight,
        microbatch.batch.tokens[targets],
        temperature=temperature,
        vocab_size=vocab_size,
        group=groups.tp,
        version=kernels.logprob,
        differentiates_entropy=differentiates_entropy,
    )
    places = torch.zeros(2, microbatch.batch.num_tokens, device=logprobs.device)
    places = places.index_copy(1, targets, torch.stack([logprobs, entropies]))
    # Every context-parallel rank computes the loss of the whole microbatch; its gradient goes to its own tokens.
    return reduce_from_tensor_model_parallel_region(places, group=groups.cp)


def values_of(
    hidden: Tensor,
    head: ValueHead,
    microbatch: Microbatch,
    groups: ProcessGroupCollection,
    *,
    sequence_parallel: bool,
) -> Tensor:
    """Values of the tokens of a microbatch, each predicted from the tokens before it.

    Args:
        hidden: as in `logprobs_of`.

    Returns:
        float32 `[1, t]`, differentiable, 0 where none is wanted.
    """
    values = head(hidden[:, 0])
    if sequence_parallel:
        # All ranks then compute the same loss, so a token's gradient is taken from one of them, and not summed.
        values = gather_from_sequence_parallel_region(values, tensor_parallel_output_grad=False, group=groups.tp)
    places = torch.zeros(1, microbatch.batch.num_tokens, device=values.device)
    places = places.index_copy(1, microbatch.targets, values.index_select(0, microbatch.rows)[None])
    return reduce_from_tensor_model_parallel_region(places, group=groups.cp)


def as_outputs(found: Tensor) -> Outputs:
    """What a loss is given, of what `logprobs_of` or `values_of` returned."""
    if len(found) == 2:
        return Outputs(found[0], found[1])
    nothing = torch.zeros_like(found[0])
    return Outputs(nothing, nothing, found[0])


def place(found: Tensor, indices: Iterable[int], batch: Batch, whole: Tensor) -> None:
    """Write what was computed of a pack to the places of its sequences in the batch.

    Args:
        found: `[rows, t]`.
        indices: the sequences, in the order of the pack.
        whole: `[rows, T]`.
    """
    starts, lengths, offset = batch.cu_seqlens.tolist(), batch.lengths, 0
    for index in indices:
        end = offset + lengths[index]
        whole[:, starts[index] : starts[index + 1]] = found[:, offset:end]
        offset = end
