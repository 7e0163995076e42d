"""Whether engines compute what the trainer computes, from the same weights.

Invariant: the probe changes nothing and draws no random numbers. It has positions up to the longest sequence of the run
(at most 4,096 tokens), as what is wrong with positions is small in short sequences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pentad.loops.roles import Engines, Policy
from pentad.samples.batch import Batch
from pentad.weights.constants import check_constants
from pentad.weights.proof import check_probe

_ROWS, _ROW_TOKENS, _TOTAL_TOKENS, _LONGEST = 16, 256, 1024, 4096


def probe_sequences(rows: Sequence[Tensor], longest: int) -> list[Tensor]:
    """Some sequences of the training data, and a long one of several rows one after the other.

    Args:
        rows: int64 `[L]` each, from the training data; not empty.
        longest: tokens of the longest sequence of the run.

    Returns:
        int64 `[2 or more]` each; the first token of a sequence has no log-prob to compare.
    """
    sequences: list[Tensor] = []
    left = _TOTAL_TOKENS
    for row in rows[:_ROWS]:
        sequence = (row if len(row) > 1 else row.repeat(2))[: min(_ROW_TOKENS, left)]
        if len(sequence) < 2:
            break
        sequences.append(sequence)
        left -= len(sequence)
    # Some engines cannot score a sequence that fills all positions, as they sample a token after it.
    length = min(longest, _LONGEST) - 1
    if length > max(map(len, sequences)):
        joined: list[Tensor] = []
        while (missing := length - sum(map(len, joined))) > 0:
            joined.append(rows[len(joined) % len(rows)][:missing])
        sequences.append(torch.cat(joined))
    return sequences


class Probe:
    """Compares engines with the trainer: what their modules compute with, and log-probs of the same tokens.

    Args:
        policy: whose weights the engines have.
        engines: that have them.
        sequences: int64 `[L]` each, L >= 2.
        copies: how often they are scored by the trainer, so that every rank has a sequence.
        dtype: the coarser of the trainer's and the engines' dtype.
    """

    def __init__(
        self, policy: Policy, engines: Engines, sequences: Sequence[Tensor], copies: int, dtype: torch.dtype
    ) -> None:
        self._policy, self._engines = policy, engines
        self._sequences, self._copies, self._dtype = list(sequences), copies, dtype

    async def run(self) -> None:
        """Compare.

        Raises:
            SyncError: engines and trainer differ by more than rounding. The message says in what.
        """
        last = max(map(len, self._sequences)) - 1
        positions = sorted({1, -(-last // 2), last})
        constants = await self._policy.constants(positions)
        for rank, found in enumerate(await self._engines.constants(positions)):
            if found is not None:
                check_constants(constants, found, f"engine {rank}")
        batch = Batch.from_sequences([(sequence[:1], sequence[1:]) for sequence in self._sequences] * self._copies)
        # Not every engine scores given tokens at another temperature.
        logprobs = await self._policy.logprobs(batch, 1.0, lambda done: None)
        expected = logprobs.split(batch.lengths)[: len(self._sequences)]
        layers = len(constants.attention)
        for rank, found in enumerate(await self._engines.logprobs(self._sequences, 1.0)):
            check_probe(expected, found, self._dtype, layers, f"engine {rank}")
