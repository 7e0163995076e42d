"""Generalised advantage estimation on packed sequences.

Invariant: only tokens of the loss mask take part; one that follows tokens of others (a tool's answer) follows the
trained token before them. Work and memory are linear in the tokens.
"""

import torch
from torch import Tensor

from pentad.samples.batch import Batch


def gae(rewards: Tensor, values: Tensor, batch: Batch, *, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns; https://arxiv.org/abs/1506.02438, equations 11, 12 and 16.

    `delta[t] = r[t] + gamma V[t + 1] - V[t]`, `A[t] = delta[t] + gamma lambda A[t + 1]`, return `A[t] + V[t]`. After
    the last token of the mask, value and advantage are 0, whatever ended the sequence.

    Args:
        rewards: any float `[T]`, at the token that they are given for.
        values: float32 `[T]`, of the state that each token is sampled in, at that token.

    Returns:
        float32 `[T]` each, 0 outside the loss mask; computed in float64.
    """
    places = batch.loss_mask.nonzero()[:, 0]
    sequence = batch.sequence_ids()[places]
    counts = torch.bincount(sequence, minlength=batch.num_sequences)
    value = values[places].double()
    following = torch.zeros_like(value)
    following[:-1] = value[1:] * (sequence[1:] == sequence[:-1])
    delta = rewards[places].double() + gamma * following - value
    # From the last token of every sequence to its first, all at once; the longest go on when others are done.
    longest_first = counts.argsort(descending=True)
    last = (counts.cumsum(0) - 1)[longest_first]
    lengths = counts[longest_first]
    advantage = torch.zeros_like(value)
    running = value.new_zeros(len(counts))
    for back in range(int(counts.max()) if len(counts) else 0):
        going = int((lengths > back).sum())
        at = last[:going] - back
        running = delta[at] + gamma * gae_lambda * running[:going]
        advantage[at] = running
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    advantages[places] = advantage.to(values.dtype)
    returns[places] = (advantage + value).to(values.dtype)
    return advantages, returns
