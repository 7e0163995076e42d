"""How long prompts and responses are, kept for the report.

Invariant: the counts of a histogram add up to the number of sequences.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pentad.record.run_dir import RunDir

_BINS = 24


def histogram(lengths: Sequence[int]) -> dict[str, Any]:
    """Counts of lengths in bins of one width.

    Args:
        lengths: tokens of each sequence, at least one.

    Returns:
        `start` and `width` of the bins in tokens, and their `counts`; with `total` (tokens), `mean` and `longest`.
    """
    low, high = min(lengths), max(lengths)
    width = max(1, math.ceil((high - low + 1) / _BINS))
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    total = sum(lengths)
    return {
        "start": low,
        "width": width,
        "counts": counts,
        "total": total,
        "mean": round(total / len(lengths), 1),
        "longest": high,
    }


def write_lengths(run_dir: RunDir, lengths: Mapping[str, Sequence[int]]) -> None:
    """Write `<run>/lengths.json`: what is counted -> its histogram. What has no sequences is left out.

    Raises:
        UserError: the disk is full.
    """
    found = {name: histogram(values) for name, values in lengths.items() if values}
    partial = run_dir.lengths.with_name("." + run_dir.lengths.name)
    with run_dir.writing():
        partial.write_text(json.dumps(found) + "\n", encoding="utf-8")
        os.replace(partial, run_dir.lengths)
