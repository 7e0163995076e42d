"""Which of a run's sample texts are shown, so that the beginning of a run can be compared with its end.

Invariant: samples that stand side by side answer the same prompt; where no prompt was sampled at both ends, the groups
say that their prompts differ.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class SampleGroup:
    """Samples of one source that are shown together.

    Attributes:
        title: says source and steps.
        items: each the samples of one prompt: of the first step, and of the last one where there are two.
    """

    title: str
    items: tuple[tuple[Row, ...], ...]


def group_samples(rows: Iterable[Row]) -> list[SampleGroup]:
    """The samples of each source's first and last step, evaluations first: their prompts are the same at every step."""
    first: dict[str, list[Row]] = {}
    last: dict[str, list[Row]] = {}
    for row in rows:
        source = str(row.get("source") or "train")
        start = first.setdefault(source, [])
        if not start or row["step"] == start[0]["step"]:
            start.append(row)
        end = last.setdefault(source, [])
        if end and row["step"] != end[0]["step"]:
            end.clear()
        end.append(row)
    groups: list[SampleGroup] = []
    for source in sorted(first, key=lambda name: name == "train"):
        groups += _of_source(source, first[source], last[source])
    return groups


def _of_source(source: str, first: list[Row], last: list[Row]) -> list[SampleGroup]:
    name = "Training" if source == "train" else f"Evaluation {source}"
    begin, end = first[0]["step"], last[0]["step"]
    if begin == end:
        return [SampleGroup(f"{name}, step {begin}", tuple((row,) for row in first))]
    pairs = []
    rest = list(last)
    for row in first:
        match = next((other for other in rest if other["prompt"] == row["prompt"]), None)
        if match is not None:
            rest.remove(match)
            pairs.append((row, match))
    if pairs:
        return [SampleGroup(f"{name}, the same prompts at step {begin} and step {end}", tuple(pairs))]
    return [
        SampleGroup(f"{name}, step {begin}", tuple((row,) for row in first)),
        SampleGroup(f"{name}, step {end} (other prompts than at step {begin})", tuple((row,) for row in last)),
    ]
