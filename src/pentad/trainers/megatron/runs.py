"""Which tokens of a pack a context-parallel rank holds, and which keys the queries of these see.

Invariant: every token of a pack is held by one rank; of a sequence, a query sees the keys up to its own place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pentad.layout.context import ContextMethod
from pentad.platform.device import to_device


def runs_of(tokens: int, rank: int, ranks: int, method: ContextMethod | None) -> tuple[range, ...]:
    """The places in the pack of what a rank holds, in the order in which it holds them.

    Where keys are gathered, the pack is cut into twice as many runs as there are ranks, and a rank takes one from the
    front and one as far from the back: later queries see more keys, and so all ranks have the same work.

    Args:
        tokens: of the pack; the number of runs divides it.
    """
    if method != "all_gather":
        length = tokens // ranks
        return (range(rank * length, (rank + 1) * length),)
    length = tokens // (2 * ranks)
    return tuple(range(number * length, (number + 1) * length) for number in (rank, 2 * ranks - 1 - rank))


@dataclass(frozen=True)
class KeyBounds:
    """The sequences of one run of queries, and the keys that they see.

    Attributes:
        keys: places in the pack of these keys: from the start of the run's first sequence to the end of the run.
        query_lengths, key_lengths: of each sequence in the run; the last query stands beside the last key.
        cu_seqlens_q, cu_seqlens_k: int32 `[sequences + 1]`, where each begins among the run's queries and keys.
    """

    keys: range
    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor

    @classmethod
    def of(cls, run: range, lengths: Sequence[int], device: torch.device) -> "KeyBounds":
        """The bounds of a run of a pack.

        Args:
            lengths: tokens of each sequence of the whole pack, in order.
        """
        queries, keys, first, start = [], [], run.stop, 0
        for length in lengths:
            stop = min(start + length, run.stop)
            if start < run.stop and stop > run.start:
                queries.append(stop - max(start, run.start))
                keys.append(stop - start)
                first = min(first, start)
            start += length
        bounds = [to_device(torch.tensor([0, *each]).cumsum(0).to(torch.int32), device) for each in (queries, keys)]
        return cls(range(first, run.stop), tuple(queries), tuple(keys), *bounds)


def in_order(gathered: Tensor, ranks: int) -> Tensor:
    """What was gathered over the ranks that hold the runs of `runs_of`, in the order of the pack.

    Args:
        gathered: `[t, ...]`, rank by rank, of each first its run from the front.
    """
    runs = gathered.chunk(2 * ranks)
    return torch.cat([*runs[0::2], *runs[::-2]])
