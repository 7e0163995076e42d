"""The order of prompts of several sources.

Invariant: the order is a function of the seed, the sizes of the sources and the settings alone; within a source each
epoch takes every row once. With weights, after any number of prompts each source has had its share of them to within
one prompt for each source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pentad.config.schema.data import DataSettings
from pentad.data.rows import PromptRow
from pentad.data.sampler import Order, PromptSampler
from pentad.errors import UserError


def make_order(rows: Sequence[PromptRow], seed: int, settings: DataSettings) -> Order:
    """The order in which rows are trained on, as `data.mix`, `data.weights` and `data.shuffle` say.

    Raises:
        UserError: the weights do not fit the sources, or a source with a weight has no row left.
    """
    sources = settings.sources
    check_weights(settings)
    if len(sources) == 1 or (settings.weights is None and settings.mix == "together"):
        return PromptSampler(rows, seed, settings.shuffle)
    parts = [[i for i, row in enumerate(rows) if row.source == number] for number in range(len(sources))]
    for source, part in zip(sources, parts, strict=True):
        if not part:
            raise UserError(
                f"all rows of {source} were left out",
                f"remove {source} from data.train, or raise data.max_prompt_tokens",
            )
    return MixedSampler(parts, seed, settings.weights, shuffle=settings.shuffle)


def check_weights(settings: DataSettings) -> None:
    """Refuse weights that do not fit the sources.

    Raises:
        UserError: they do not.
    """
    weights, sources = settings.weights, settings.sources
    if weights is None:
        return
    if len(weights) != len(sources):
        raise UserError(
            f"data.weights has {len(weights)} numbers, but data.train has {len(sources)} "
            f"{'source' if len(sources) == 1 else 'sources'}",
            "give one weight for each source" if len(sources) > 1 else "remove data.weights",
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"data.weights={weights} has a number that is not above 0", "remove that source, or raise it")


class MixedSampler:
    """Walks over the rows of several sources for ever.

    Args:
        parts: the indices of each source's rows.
        seed: `experiment.seed`.
        weights: shares of the sources; None: one source after the other, again and again.
        shuffle: a new order of each source's rows in each of its epochs.
    """

    def __init__(
        self, parts: Sequence[Sequence[int]], seed: int, weights: Sequence[float] | None, *, shuffle: bool
    ) -> None:
        self._parts = parts
        self._weights = list(weights) if weights is not None else None
        # Each source with a seed of its own: sources of equal sizes must not have equal orders.
        self._samplers = [PromptSampler(part, seed + 1_000_003 * i, shuffle) for i, part in enumerate(parts)]
        self._taken = [0] * len(parts)

    def next(self, n: int) -> list[int]:
        """The indices of the next `n` rows."""
        return [self._one() for _ in range(n)]

    def _one(self) -> int:
        number = self._choose()
        self._taken[number] += 1
        return self._parts[number][self._samplers[number].next(1)[0]]

    def _choose(self) -> int:
        """The source that is next: the one furthest behind its share, or the one whose epoch is not over."""
        if self._weights is None:
            sizes = [len(part) for part in self._parts]
            at = sum(self._taken) % sum(sizes)
            return next(i for i in range(len(sizes)) if at < sum(sizes[: i + 1]))
        total, count = math.fsum(self._weights), sum(self._taken) + 1
        behind = [w / total * count - taken for w, taken in zip(self._weights, self._taken, strict=True)]
        return behind.index(max(behind))

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which another sampler over the same rows goes on."""
        return {
            "weights": self._weights,
            "taken": list(self._taken),
            "samplers": [sampler.state_dict() for sampler in self._samplers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: the state is of other sources, other weights, another seed or another order.
        """
        samplers = state.get("samplers", ())
        if len(samplers) != len(self._samplers) or state.get("weights") != self._weights:
            raise UserError(
                f"data.weights was {state.get('weights')} over {len(samplers) or 1} sources when the checkpoint was "
                f"written and is {self._weights} over {len(self._samplers)} now; the order of the prompts could not be "
                "continued",
                "set data.train, data.mix and data.weights back, or start a new run",
            )
        for sampler, part in zip(self._samplers, samplers, strict=True):
            sampler.load_state_dict(part)
        self._taken = list(state["taken"])
