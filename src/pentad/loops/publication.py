"""Weights from the trainer to the engines, with proof.

Invariant: engines never generate from weights whose arrival was not proven. What arrived is proven by checksums at
every publication; that engines compute with it what the trainer computes is probed at the first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pentad.loops.journal import Journal
from pentad.loops.roles import Engines, Policy
from pentad.samples.batch import Batch
from pentad.weights.proof import check_probe

_PROBES = 4
_PROBE_TOKENS = 256


class Publication:
    """Keeps the engines at the trainer's version.

    Args:
        policy: whose weights are published.
        engines: that take them.
        probes: int64 `[L]` each, the first sequences of the training data, as the model is trained on them.
        copies: how often they are repeated, so that every rank of the trainer has a sequence.
        temperature: of sampling.
        dtype: the coarser of the trainer's and the engines' dtype.
    """

    def __init__(
        self,
        policy: Policy,
        engines: Engines,
        journal: Journal,
        *,
        probes: Sequence[Tensor],
        copies: int,
        temperature: float,
        dtype: torch.dtype,
    ) -> None:
        self._policy, self._engines, self._journal = policy, engines, journal
        # The first token has no log-prob to compare.
        self._probes = [
            (tokens if len(tokens) > 1 else tokens.repeat(2))[:_PROBE_TOKENS] for tokens in probes[:_PROBES]
        ]
        self._copies, self._temperature, self._dtype = copies, temperature, dtype
        self._published: int | None = None

    async def bring(self, version: int) -> None:
        """Bring the engines to the trainer's weights, which are of this version; nothing where they have them.

        Raises:
            SyncError: a tensor did not arrive as it was sent, or engines and trainer disagree on log-probs.
        """
        if self._published == version:
            return
        with self._journal.timed("sync"):
            self._journal.progress("sync")
            await self._policy.publish(version)
            if self._published is None:
                await self._probe()
        self._published = version

    async def _probe(self) -> None:
        batch = Batch.from_sequences([(sequence[:1], sequence[1:]) for sequence in self._probes] * self._copies)
        logprobs = await self._policy.logprobs(batch, self._temperature, lambda done: None)
        expected = logprobs.split(batch.lengths)[: len(self._probes)]
        for rank, found in enumerate(await self._engines.logprobs(self._probes, self._temperature)):
            check_probe(expected, found, self._dtype, f"engine {rank}")
