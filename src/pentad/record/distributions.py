"""distributions.jsonl: how the responses of each step are distributed, one line a step.

Invariant: a line holds the quantiles of every quantity that its step has, from the least to the greatest value.

A line is `{"step": 3, "length": [1, 2, 4, 5, 7, 9, 12], ...}`: of each quantity the quantiles of `QUANTILES`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pentad.record.jsonl import JsonLines, read_jsonl
from pentad.record.run_dir import RunDir

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

# Key -> title and caption of its chart.
TITLES: Mapping[str, tuple[str, str]] = {
    "length": (
        "Lengths of the responses",
        "Tokens of the step's responses: median, middle half, middle 80%, and all.",
    ),
    "entropy": (
        "Entropies of the responses",
        "Mean of -log p of a response's tokens as sampled, in nats (expected value: the entropy); bands as of lengths.",
    ),
}


class DistributionLog:
    """Writes distributions.jsonl."""

    def __init__(self, run_dir: RunDir) -> None:
        self._lines = JsonLines(run_dir.distributions, run_dir)

    def write(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """Write the quantiles of a step; values that are not finite have none.

        Raises:
            UserError: the disk is full.
        """
        row: dict[str, int | list[float]] = {"step": step}
        for name, found in values.items():
            if finite := [value for value in found if math.isfinite(value)]:
                row[name] = [float(f"{value:.6g}") for value in np.quantile(finite, QUANTILES)]
        self._lines.append(row)

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_distributions(run_dir: RunDir, notes: list[str]) -> dict[str, dict[int, list[float]]]:
    """Quantity -> step -> quantiles.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for row in read_jsonl(run_dir.distributions, notes):
        for name in TITLES:
            if isinstance(row.get(name), list) and len(row[name]) == len(QUANTILES):
                found.setdefault(name, {})[row["step"]] = row[name]
    return found
