"""Which of a run's sample texts are shown, so that the course of a run can be seen in them.

Invariant: samples that stand side by side answer the same prompt; where no prompt was sampled at both ends, the groups
say that their prompts differ. Memory does not grow with the length of the run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
# Steps of one source that are shown side by side.
_SHOWN = 5
# Steps of one source that are kept while a file is read.
_KEPT = 4 * _SHOWN


@dataclass(frozen=True)
class SampleGroup:
    """Samples of one source that are shown together.

    Attributes:
        title: says source and steps.
        items: each the samples of one prompt, in order of steps.
    """

    title: str
    items: tuple[tuple[Row, ...], ...]


class _Steps:
    """Rows of some steps of one source, evenly spread: the first, the last, and every second, fourth, ... between."""

    def __init__(self) -> None:
        self._every, self._seen = 1, 0
        self.kept: dict[int, list[Row]] = {}
        self._numbers: dict[int, int] = {}

    def add(self, row: Row) -> None:
        step = row["step"]
        if step not in self._numbers:
            self._drop_last_if_between()
            self._numbers[step] = self._seen
            self._seen += 1
            self.kept[step] = []
            if len(self.kept) > _KEPT:
                self._every *= 2
                for other in [s for s, number in self._numbers.items() if number % self._every and s != step]:
                    self._forget(other)
        self.kept[step].append(row)

    def _drop_last_if_between(self) -> None:
        """The step that was the last so far stays only where it is one of those that are kept."""
        if self.kept and self._numbers[last := max(self.kept)] % self._every:
            self._forget(last)

    def _forget(self, step: int) -> None:
        del self.kept[step], self._numbers[step]


def group_samples(rows: Iterable[Row]) -> list[SampleGroup]:
    """The samples of each source over the steps, evaluations first: their prompts are the same at every step."""
    sources: dict[str, _Steps] = {}
    for row in rows:
        sources.setdefault(str(row.get("source") or "train"), _Steps()).add(row)
    groups: list[SampleGroup] = []
    for source in sorted(sources, key=lambda name: name == "train"):
        groups += _of_source(source, sources[source].kept)
    return groups


def _of_source(source: str, by_step: dict[int, list[Row]]) -> list[SampleGroup]:
    name = "Training" if source == "train" else f"Evaluation {source}"
    steps = sorted(by_step)
    begin, end = steps[0], steps[-1]
    first, last = by_step[begin], by_step[end]
    if begin == end:
        return [SampleGroup(f"{name}, step {begin}", tuple((row,) for row in first))]
    rest = {step: list(by_step[step]) for step in _spread(steps)}
    items = []
    for row in first:
        found = [match for left in rest.values() if (match := _take(left, row["prompt"])) is not None]
        if found[-1]["step"] == end:
            items.append(tuple(found))
    if items:
        shown = _in_words(sorted({row["step"] for item in items for row in item}))
        return [SampleGroup(f"{name}, the same prompts at {shown}", tuple(items))]
    return [
        SampleGroup(f"{name}, step {begin}", tuple((row,) for row in first)),
        SampleGroup(f"{name}, step {end} (other prompts than at step {begin})", tuple((row,) for row in last)),
    ]


def _spread(steps: list[int]) -> list[int]:
    """At most so many of them as are shown: the first, the last, and others as evenly between as can be."""
    if len(steps) <= _SHOWN:
        return steps
    wanted = [steps[0] + (steps[-1] - steps[0]) * part / (_SHOWN - 1) for part in range(_SHOWN)]
    return sorted({min(steps, key=lambda step, at=at: abs(step - at)) for at in wanted})


def _take(rows: list[Row], prompt: Any) -> Row | None:
    """Take the first row with a prompt out of the rows."""
    match = next((row for row in rows if row["prompt"] == prompt), None)
    if match is not None:
        rows.remove(match)
    return match


def _in_words(steps: list[int]) -> str:
    *others, last = [f"step {step}" for step in steps]
    return f"{', '.join(others)} and {last}"
