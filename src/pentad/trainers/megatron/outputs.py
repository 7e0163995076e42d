"""What the last pipeline stage makes of hidden states: log-probs and entropies.

Invariant: every rank of a tensor- and context-parallel group gets the same numbers for all tokens of the microbatch, so
each computes the whole loss; the gradient of a token goes to the rank that computed it.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor

from pentad.kernels.logprob import vocab_parallel_logprobs
from pentad.kernels.selection import Kernels
from pentad.trainers.megatron.microbatch import Microbatch
from pentad.trainers.megatron.rows import take_rows


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
    first = microbatch.start
    last = first + hidden.shape[0]
    targets = microbatch.targets
    if groups.cp.size() > 1:  # each is predicted by the rank that has the token before it
        targets = targets[(targets > first) & (targets <= last)]
    logprobs, entropies = vocab_parallel_logprobs(
        take_rows(hidden[:, 0], targets - 1 - first),
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
