"""The batches that every layout computes, one for each optimizer step: ragged, packed, with all that GRPO reads.

Invariant: equal arguments give equal batches. No token is near a place where the loss has a kink, and the loss is
not a small difference of large numbers, so that rounding stays rounding.
"""

import torch
from torch import Tensor

from pentad.config.schema.algorithms import GRPOSettings
from pentad.samples.batch import Batch

TEMPERATURE = 0.9
LOSS = GRPOSettings(clip_low=0.2, clip_high=0.25, kl_coef=0.1)
# Several packs of several sequences on each of four data-parallel ranks.
TOKENS_PER_MICROBATCH = 96
# A second step is what sees wrong moments of the optimizer, and gradients that an earlier step left behind.
STEPS = 2

_SEQUENCES, _GROUP = 24, 4
_LONGEST_PROMPT, _LONGEST_RESPONSE = 9, 37
# Log of the probability ratio to the policy that sampled. Clipping starts at log 0.8 = -0.22 and log 1.25 = 0.22.
_LOG_RATIOS = torch.tensor([-0.5, -0.12, -0.04, 0.04, 0.12, 0.5])
_OBJECTIVE_SEED = 7


def make_batch(vocabulary: int, seed: int = 1) -> Batch:
    """24 sequences of 2 to 46 random tokens in groups of 4; one of them without a response.

    Args:
        seed: the number of the optimizer step, from 1.
    """
    random = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> Tensor:
        return torch.randint(0, vocabulary, (count,), generator=random)

    def length(most: int) -> int:
        return int(torch.randint(1, most + 1, (), generator=random))

    sequences = [(tokens(length(_LONGEST_PROMPT)), tokens(length(_LONGEST_RESPONSE))) for _ in range(_SEQUENCES - 3)]
    sequences += [
        (tokens(1), tokens(1)),
        (tokens(6), tokens(0)),
        (tokens(_LONGEST_PROMPT), tokens(_LONGEST_RESPONSE)),
    ]
    # Ids are no places, so that the one cannot be taken for the other.
    batch = Batch.from_sequences(sequences, sample_ids=[100 + 3 * number for number in range(_SEQUENCES)])
    return batch.with_per_sequence("group_ids", torch.arange(_SEQUENCES) // _GROUP)


def with_objective(batch: Batch, logprobs: Tensor) -> Batch:
    """Advantages, and old and reference log-probs at given distances from the policy's own.

    Args:
        logprobs: float32 `[T]`, the policy's.
    """
    random = torch.Generator().manual_seed(_OBJECTIVE_SEED)

    def near() -> Tensor:
        chosen = torch.randint(0, len(_LOG_RATIOS), (batch.num_tokens,), generator=random)
        return (logprobs - _LOG_RATIOS[chosen]) * batch.loss_mask

    # Of one sign in most sequences: a mean of them that cancels would be known to fewer digits.
    advantages = 0.5 + torch.rand(batch.num_sequences, generator=random)
    advantages[:: _GROUP + 1] *= -1
    batch = batch.with_per_token("old_logprobs", near()).with_per_token("ref_logprobs", near())
    return batch.with_per_token("advantages", advantages[batch.sequence_ids()] * batch.loss_mask)


def with_returns(batch: Batch, values: Tensor) -> Batch:
    """What a critic learns, at given distances from its own values; most of one sign, as a sum that cancels is inexact.

    Args:
        values: float32 `[T]`, the critic's.
    """
    random = torch.Generator().manual_seed(_OBJECTIVE_SEED)
    distances = 0.25 + torch.rand(batch.num_tokens, generator=random)
    distances[:: _GROUP + 1] *= -1
    return batch.with_per_token("returns", (values + distances) * batch.loss_mask)
