"""The order in which prompts are trained on.

Invariant: the order is a function of the seed and the number of rows alone; each epoch takes every row once; a
sampler that loads the state of another goes on exactly where that one stood.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Protocol

import numpy as np

from pentad.errors import UserError


class Order(Protocol):
    """Says which row is next; the order of one source, or of several (`pentad.data.mixture`)."""

    def next(self, n: int) -> list[int]:
        """The indices of the next `n` rows."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PromptSampler:
    """Walks over rows for ever, epoch after epoch.

    Args:
        rows: what is walked over; only its length is looked at.
        seed: `experiment.seed`.
        shuffle: a new order each epoch, or the order of the rows.
    """

    def __init__(self, rows: Sized, seed: int, shuffle: bool = True) -> None:
        if len(rows) == 0:
            raise ValueError("there are no rows to sample from")
        self._num_rows = len(rows)
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0
        self._position = 0
        self._order = self._make_order()

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._epoch

    def next(self, n: int) -> list[int]:
        """The indices of the next `n` rows. May run over the end of an epoch."""
        taken: list[int] = []
        while len(taken) < n:
            if self._position == self._num_rows:
                self._epoch += 1
                self._position = 0
                self._order = self._make_order()
            step = self._order[self._position : self._position + n - len(taken)]
            taken += step.tolist()
            self._position += len(step)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which another sampler over the same rows goes on."""
        return {
            "seed": self._seed,
            "shuffle": self._shuffle,
            "num_rows": self._num_rows,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: the state is of other rows, another seed or another order.
        """
        mine = self.state_dict()
        if "samplers" in state:
            raise UserError(
                "the checkpoint was written with the sources of data.train one after the other or with data.weights, "
                "and now they are one set; the order of the prompts could not be continued",
                "set data.train, data.mix and data.weights back, or start a new run",
            )
        names = {"seed": "experiment.seed", "shuffle": "data.shuffle", "num_rows": "the number of training rows"}
        for key, name in names.items():
            if state[key] != mine[key]:
                raise UserError(
                    f"{name} was {state[key]} when the checkpoint was written and is {mine[key]} now; "
                    "the order of the prompts could not be continued",
                    f"set it back to {state[key]}, or start a new run",
                )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._make_order()

    def _make_order(self) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._num_rows)
        return np.random.default_rng([self._seed, self._epoch]).permutation(self._num_rows)
