"""Packing sequences into microbatches, and samples into optimizer steps.

Invariant: in a `Plan` every sample appears exactly once, every rank has the same number of microbatches, no
microbatch is empty, and none holds more than its token budget. Pure: equal arguments give an equal plan, so every
rank may compute it for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pentad.errors import UserError

# Attention over linear work of one token at length L is about L / (12 * hidden size) (causal, a 4x MLP); this is
# that of a hidden size of 2048.
DEFAULT_QUADRATIC = 1.0 / (12 * 2048)


@dataclass(frozen=True)
class Plan:
    """Which samples make up which microbatch.

    Args:
        microbatches: `microbatches[rank][k]` holds the sample indices of the k-th microbatch of a rank. The k-th
            microbatches of all ranks cost about the same, so ranks that meet in each of them wait little.
        max_tokens_used: tokens of the fullest microbatch.
        balance: cost of the busiest rank over the mean of all; 1 is perfect.
    """

    microbatches: tuple[tuple[tuple[int, ...], ...], ...]
    max_tokens_used: int
    balance: float

    @property
    def num_microbatches(self) -> int:
        """Microbatches of each rank."""
        return len(self.microbatches[0])


def plan_microbatches(
    lengths: Sequence[int],
    ranks: int,
    max_tokens: int,
    *,
    multiple: int = 1,
    quadratic: float = DEFAULT_QUADRATIC,
    together: Sequence[int] | None = None,
) -> Plan:
    """Pack sequences into as few microbatches as fit, balanced in cost over microbatches and ranks.

    The cost of a sequence of `L` tokens is `L + quadratic * L**2`. Packing is longest-processing-time-first under
    the token budget; where that does not fit, best-fit-decreasing, which packs tighter and balances worse. A number
    of sequences that `ranks` divides can always be packed, whatever their lengths.

    Args:
        lengths: tokens of each sequence, each at least 1.
        ranks: data-parallel ranks.
        max_tokens: largest number of tokens in one microbatch.
        multiple: the microbatches of a rank are a multiple of this (interleaved pipelines need one of their stages).
        quadratic: weight of the attention term, per token; `1 / (12 * hidden_size)` is a good one.
        together: sequences with the same number go into one microbatch, as the two of a pair; None: each for itself.

    Raises:
        UserError: a sequence is longer than `max_tokens`, there are fewer sequences than ranks, or the sequences
            cannot be packed without leaving a microbatch empty.
        ValueError: an argument is out of its range.
    """
    if ranks < 1 or max_tokens < 1 or quadratic < 0:
        raise ValueError(
            f"ranks {ranks} and max_tokens {max_tokens} must be positive, quadratic {quadratic} not negative"
        )
    tokens = np.asarray(lengths, dtype=np.int64)
    if len(tokens) > 0 and tokens.min() < 1:
        raise ValueError(f"sequence {int(tokens.argmin())} has {int(tokens.min())} tokens; every one needs at least 1")
    costs = tokens + quadratic * tokens.astype(np.float64) ** 2
    if together is not None:
        return _plan_together(tokens, costs, together, ranks, max_tokens, multiple)
    return _plan(tokens, costs, ranks, max_tokens, multiple)


def _plan_together(
    tokens: np.ndarray, costs: np.ndarray, together: Sequence[int], ranks: int, max_tokens: int, multiple: int
) -> Plan:
    """A plan in which what is to be together is packed as if it were one sequence."""
    members: dict[int, list[int]] = {}
    for index, number in enumerate(together):
        members.setdefault(number, []).append(index)
    units = list(members.values())
    plan = _plan(
        np.asarray([tokens[unit].sum() for unit in units]),
        np.asarray([costs[unit].sum() for unit in units]),
        ranks,
        max_tokens,
        multiple,
    )
    whole = tuple(
        tuple(tuple(sorted(index for unit in microbatch for index in units[unit])) for microbatch in rank)
        for rank in plan.microbatches
    )
    return replace(plan, microbatches=whole)


def _plan(tokens: np.ndarray, costs: np.ndarray, ranks: int, max_tokens: int, multiple: int) -> Plan:
    if len(tokens) < ranks * multiple:
        each = "one" if multiple == 1 else f"{multiple} (one for each pipeline stage, as virtual stages are used)"
        raise UserError(
            f"{len(tokens)} sequences cannot occupy {ranks} data-parallel ranks: each needs at least {each}",
            "raise trainer.prompts_per_step (or rollout.n), lower algorithm.optimizer_steps, "
            "or take fewer data-parallel ranks in allocation",
        )
    if tokens.max() > max_tokens:
        raise UserError(
            f"sequence {int(tokens.argmax())} has {int(tokens.max())} tokens, "
            f"more than trainer.tokens_per_microbatch={max_tokens}",
            f"set trainer.tokens_per_microbatch to at least {int(tokens.max())}",
        )
    step = ranks * multiple
    bins = _pack(tokens, costs, step, max_tokens)
    if bins is None:
        most = len(tokens) // step * step
        loads = [int(tokens[b].sum()) for b in _spread(tokens, tokens, most, None) or []]
        raise UserError(
            f"{len(tokens)} sequences do not fit into an equal number of microbatches on each of {ranks} "
            f"data-parallel ranks under trainer.tokens_per_microbatch={max_tokens} without leaving one empty",
            f"set trainer.tokens_per_microbatch to at least {max(loads)}, or make the number of sequences in an "
            f"optimizer step (prompts_per_step x rollout.n / optimizer_steps) a multiple of {step}",
        )
    return _deal(bins, tokens, costs, ranks)


def split_minibatches(num_samples: int, parts: int, group_ids: Sequence[int] | None = None) -> list[list[int]]:
    """Split samples 0 to `num_samples - 1` into `parts` optimizer steps of nearly equal size.

    Order is kept. With `group_ids` (`[num_samples]`) all samples of a group stay together, so sizes differ by at
    most about a group; without, by at most one sample.

    Raises:
        UserError: there are fewer samples (or groups) than parts.
        ValueError: `group_ids` has another length, or `parts` is not positive.
    """
    if parts < 1:
        raise ValueError(f"parts must be positive, not {parts}")
    if group_ids is not None and len(group_ids) != num_samples:
        raise ValueError(f"{len(group_ids)} group_ids for {num_samples} samples")
    groups: dict[int, list[int]] = {}
    for index in range(num_samples):
        groups.setdefault(index if group_ids is None else int(group_ids[index]), []).append(index)
    if len(groups) < parts:
        kind = "samples" if group_ids is None else "prompts"
        raise UserError(
            f"algorithm.optimizer_steps={parts} needs at least {parts} {kind} a rollout batch; there are {len(groups)}",
            f"set algorithm.optimizer_steps to at most {len(groups)}, or raise trainer.prompts_per_step",
        )
    waiting = list(groups.values())
    minibatches: list[list[int]] = []
    remaining = num_samples
    start = 0
    for part in range(parts):
        target = remaining / (parts - part)
        last_start = len(waiting) - (parts - part - 1)  # one group at least is left for every later part
        minibatch = list(waiting[start])
        start += 1
        # Take the next group while that brings the size nearer to the target.
        while start < last_start and abs(len(minibatch) + len(waiting[start]) - target) <= abs(len(minibatch) - target):
            minibatch += waiting[start]
            start += 1
        minibatches.append(minibatch)
        remaining -= len(minibatch)
    return minibatches


def _pack(tokens: np.ndarray, costs: np.ndarray, step: int, max_tokens: int) -> list[list[int]] | None:
    """Bins of samples, their number the smallest multiple of `step` that a packing was found for, or None."""
    # Neither the tokens in all nor the sequences longer than half a bin fit into fewer.
    least = max(-(-int(tokens.sum()) // max_tokens), int((2 * tokens > max_tokens).sum()), 1)
    tight: list[list[int]] | None = None
    for count in range(-(-least // step) * step, len(tokens) + 1, step):
        bins = _spread(tokens, costs, count, max_tokens)
        if bins is not None:
            return bins
        tight = tight or _best_fit(tokens, max_tokens)
        if len(tight) <= count:
            return _split_up(tight, tokens, costs, count)
        bins = _spread(tokens, tokens, count, max_tokens)
        if bins is not None:
            return bins
    return None


def _spread(tokens: np.ndarray, weights: np.ndarray, count: int, max_tokens: int | None) -> list[list[int]] | None:
    """Longest-processing-time-first: the heaviest sample goes to the lightest of `count` bins that has room."""
    loads = np.zeros(count)
    room = np.full(count, np.iinfo(np.int64).max if max_tokens is None else max_tokens, dtype=np.int64)
    bins: list[list[int]] = [[] for _ in range(count)]
    for sample in np.argsort(-weights, kind="stable"):
        open_loads = np.where(room >= tokens[sample], loads, np.inf)
        chosen = int(open_loads.argmin())
        if open_loads[chosen] == np.inf:
            return None
        bins[chosen].append(int(sample))
        loads[chosen] += weights[sample]
        room[chosen] -= tokens[sample]
    return bins


def _best_fit(tokens: np.ndarray, max_tokens: int) -> list[list[int]]:
    """Best-fit-decreasing: the longest sample goes to the fullest bin that has room, or to a new one."""
    bins: list[list[int]] = []
    room = np.full(len(tokens), -1, dtype=np.int64)  # of the bins opened so far; -1 fits nothing
    for sample in np.argsort(-tokens, kind="stable"):
        left = np.where(room >= tokens[sample], room, np.iinfo(np.int64).max)
        chosen = int(left.argmin())
        if left[chosen] == np.iinfo(np.int64).max:
            chosen = len(bins)
            bins.append([])
            room[chosen] = max_tokens
        bins[chosen].append(int(sample))
        room[chosen] -= tokens[sample]
    return bins


def _split_up(bins: list[list[int]], tokens: np.ndarray, costs: np.ndarray, count: int) -> list[list[int]]:
    """`bins`, of which the costliest are halved until there are `count`; there are at least `count` samples."""
    bins = list(bins)
    while len(bins) < count:
        costliest = max((b for b in range(len(bins)) if len(bins[b]) > 1), key=lambda b: float(costs[bins[b]].sum()))
        members = np.asarray(bins.pop(costliest))
        halves = _spread(tokens[members], costs[members], 2, None)
        bins += [[int(members[i]) for i in half] for half in halves or []]
    return bins


def _deal(bins: list[list[int]], tokens: np.ndarray, costs: np.ndarray, ranks: int) -> Plan:
    """Deal bins to ranks, one each a round from the costliest down, the costliest of a round to the lightest rank."""
    ordered = sorted(bins, key=lambda b: (-float(costs[b].sum()), b))
    loads = [0.0] * ranks
    dealt: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    for first in range(0, len(ordered), ranks):
        lightest_first = sorted(range(ranks), key=lambda rank: (loads[rank], rank))
        for rank, members in zip(lightest_first, ordered[first : first + ranks], strict=True):
            dealt[rank].append(tuple(sorted(members)))
            loads[rank] += float(costs[members].sum())
    return Plan(
        microbatches=tuple(tuple(rank) for rank in dealt),
        max_tokens_used=max(int(tokens[b].sum()) for b in bins),
        balance=max(loads) * ranks / sum(loads),
    )
