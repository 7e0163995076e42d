"""The loss on rows that are not trained on, with the weights that the trainer has.

Invariant: every token of every row is counted once. Rows that are there a second time, so that all data-parallel ranks
have equally many, are not counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from pentad.config.schema.algorithms.base import Role
from pentad.data.preferences import EncodedPreferences
from pentad.data.prompts import EncodedExamples
from pentad.loops.roles import Trainer
from pentad.samples.batch import Batch

# Rows that are scored at a time.
_ROWS = 1024

Progress = Callable[[str, int], Callable[[int], None]]


class HeldOut:
    """Measures the loss of given responses; of pairs, how often the policy prefers the chosen one.

    Args:
        sets: examples by the name of the evaluation.
        roles: models; pairs need a reference beside the policy.
        multiple: numbers of rows that the trainer's ranks can share out evenly.
    """

    def __init__(self, sets: Mapping[str, EncodedExamples], roles: Mapping[Role, Trainer], multiple: int) -> None:
        self._sets, self._roles, self._multiple = sets, roles, multiple

    async def run(self, progress: Progress) -> dict[str, float]:
        """`eval/<name>/loss`, nats a token, or `eval/<name>/preference_accuracy`, of each set."""
        metrics: dict[str, float] = {}
        for name, examples in self._sets.items():
            if isinstance(examples, EncodedPreferences):
                metrics[f"eval/{name}/preference_accuracy"] = await self._preferences(name, examples, progress)
            else:
                metrics[f"eval/{name}/loss"] = await self._loss(name, examples, progress)
        return metrics

    async def _loss(self, name: str, examples: EncodedExamples, progress: Progress) -> float:
        """The negative log-likelihood of all trained tokens over their number."""
        total, tokens = 0.0, 0
        for first in range(0, len(examples), _ROWS):
            chosen = range(first, min(first + _ROWS, len(examples)))
            batch = self._padded(example_batch(examples, chosen), 1)
            logprobs = await self._roles["policy"].logprobs(batch, 1.0, progress(f"eval {name}", len(examples)))
            counted = (batch.sequence_ids() < len(chosen)) & batch.loss_mask
            total -= float(logprobs[counted].double().sum())
            tokens += int(counted.sum())
        return total / tokens

    async def _preferences(self, name: str, pairs: EncodedPreferences, progress: Progress) -> float:
        """Part of the pairs whose chosen response has become likelier, against the reference, than the rejected one."""
        right = 0
        for first in range(0, len(pairs), _ROWS):
            chosen = range(first, min(first + _ROWS, len(pairs)))
            batch = self._padded(pair_batch(pairs, chosen), 2)
            ratio = torch.zeros(batch.num_sequences, dtype=torch.float64)
            for sign, role in ((1.0, "policy"), (-1.0, "reference")):
                logprobs = await self._roles[role].logprobs(batch, 1.0, progress(f"eval {name}", len(pairs)))
                ratio.index_add_(0, batch.sequence_ids(), sign * logprobs.double())
            margins = ratio[0::2] - ratio[1::2]
            right += int((margins[: len(chosen)] > 0).sum())
        return right / len(pairs)

    def _padded(self, batch: Batch, each: int) -> Batch:
        """The batch, with its last row again until the ranks can share the rows out evenly."""
        missing = -(batch.num_sequences // each) % self._multiple
        last = range(batch.num_sequences - each, batch.num_sequences)
        padded = batch.select([*range(batch.num_sequences), *(list(last) * missing)])
        padded = replace(padded, sample_ids=torch.arange(padded.num_sequences))
        if "pair_ids" in padded.per_sequence:
            padded = padded.with_per_sequence("pair_ids", torch.arange(padded.num_sequences) // 2)
        return padded


def example_batch(examples: EncodedExamples, chosen: range | list[int]) -> Batch:
    """Examples as a batch; the loss mask is what is trained on."""
    batch = Batch.from_sequences([examples.examples[index] for index in chosen])
    if examples.masks:
        masks = [(torch.zeros(len(examples.examples[i][0])), examples.mask(i)) for i in chosen]
        batch = replace(batch, loss_mask=torch.cat([part.bool() for pair in masks for part in pair]))
    return batch


def pair_batch(pairs: EncodedPreferences, chosen: range | list[int]) -> Batch:
    """The two responses of each pair one after the other, with `pair_ids` and `chosen`."""
    batch = Batch.from_sequences([pairs.examples[2 * row + which] for row in chosen for which in (0, 1)])
    places = torch.arange(2 * len(chosen))
    return batch.with_per_sequence("pair_ids", places // 2).with_per_sequence("chosen", places % 2 == 0)
