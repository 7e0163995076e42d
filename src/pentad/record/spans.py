"""spans.jsonl: who did what when in the steps of a run, one line a step.

Invariant: the file stays below 16 MiB however long the run is: it keeps the first steps, the last ones, and every
second, fourth, ... of those between. It never ends a run: what a full disk does not take is kept in memory for a while,
and then lost.

A line is `{"step": 3, "after": false, "began": 41.2, "seconds": 9.7, "lanes": [...]}`: when the step began, in seconds
since the processes were started, and how long it took; `after` marks what came after the step, an evaluation. A lane is
`{"who": "trainer rank", "ranks": "0-3", "spans": [["training", 2.1, 8.9], ...]}`: processes of which all did the same,
and their spans in seconds from the step's beginning.
"""

import logging
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pentad.errors import UserError
from pentad.record.jsonl import JsonLines, read_jsonl
from pentad.record.occupancy import Lanes, Part
from pentad.record.phases import kind_of, rank_of
from pentad.record.run_dir import RunDir

_log = logging.getLogger(__name__)
MOST_BYTES = 16 << 20
# Lines that are kept when the file is thinned out.
_FIRST, _LAST = 16, 128
_MOST_STEPS = 1 << 32
# Of one lane; its shortest ones are left out.
_MOST_SPANS = 400
# Processes that began and ended everything within that part of the step, and 2 ms, did the same.
_SAME = 0.002


@dataclass(frozen=True)
class Lane:
    """What some processes of one kind did.

    Attributes:
        who: their kind.
        ranks: their numbers; empty for what has none.
        parts: phase, begin and end in seconds from the step's beginning.
    """

    who: str
    ranks: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Row:
    """A line of spans.jsonl."""

    step: int
    after: bool
    seconds: float
    lanes: tuple[Lane, ...]


class SpansLog:
    """Appends to spans.jsonl.

    Args:
        most_bytes: longest that the file becomes.
    """

    def __init__(self, run_dir: RunDir, most_bytes: int = MOST_BYTES) -> None:
        self._run_dir, self._path, self._most = run_dir, run_dir.spans, most_bytes
        self._lines = JsonLines(self._path, run_dir)

    def write(self, step: int, began: float, seconds: float, lanes: Lanes, *, after: bool = False) -> None:
        """Append the lanes of a step.

        Args:
            began: when, in seconds from the start of the processes.
            after: they are of what followed on the step, and are not part of it.
        """
        row = {
            "step": step,
            "after": after,
            "began": round(began, 3),
            "seconds": round(seconds, 4),
            "lanes": [_written(lane) for lane in join_lanes(lanes, seconds)],
        }
        try:
            self._lines.append(row)
        except UserError as error:
            _log.warning("%s; spans of the last steps are lost", error.cause)
            self._lines = JsonLines(self._path, self._run_dir)
        with suppress(OSError):
            if self._path.stat().st_size > self._most:
                self._thin()

    def close(self) -> None:
        """Close the file; what a disk that is still full does not take is lost."""
        try:
            self._lines.close()
        except UserError as error:
            _log.warning("%s; spans of the last steps are lost", error.cause)

    def _thin(self) -> None:
        """Bring the file to half of what it may have. A disk without room for the copy leaves it as it is."""
        kept = thinned(self._path.read_bytes().splitlines(keepends=True), self._most // 2)
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            partial.write_bytes(b"".join(kept))
            os.replace(partial, self._path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        self.close()
        self._lines = JsonLines(self._path, self._run_dir)


def thinned(lines: list[bytes], most: int) -> list[bytes]:
    """The first and the last lines, and so many between, evenly spread over the steps, that all have `most` bytes."""
    first, last, every = _FIRST, _LAST, 1
    while sum(map(len, lines)) > most and len(lines) > 1:
        end, every = len(lines) - last, 2 * every
        if end > first:
            between = [line for line in lines[first:end] if every < _MOST_STEPS and _step(line) % every == 0]
            lines = [*lines[:first], *between, *lines[end:]]
        else:
            first, last = first // 2, max(1, last // 2)
    return lines


def _step(line: bytes) -> int:
    """The step of a line; 1, which no other number of steps divides, where it has none."""
    found = re.match(rb'{"step": (\d+),', line)
    return int(found[1]) if found else 1


def join_lanes(lanes: Lanes, seconds: float) -> list[Lane]:
    """Lanes of which processes of one kind that did the same share one."""
    near = max(0.002, _SAME * seconds)
    joined: list[Lane] = []
    for who, parts in lanes.items():
        kind, rank, mine = kind_of(who), rank_of(who), tuple(_fewer(parts, seconds))
        for place, lane in enumerate(joined):
            if rank is not None and lane.who == kind and _same(lane.parts, mine, near):
                joined[place] = Lane(kind, (*lane.ranks, rank), lane.parts)
                break
        else:
            joined.append(Lane(kind, () if rank is None else (rank,), mine))
    return joined


def read_spans(path: Path, notes: list[str]) -> list[Row]:
    """The lines of a file; one that is none is told in `notes`.

    Raises:
        UserError: a line is no JSON object with a step.
    """
    rows = []
    for row in read_jsonl(path, notes):
        try:
            rows.append(_row(row))
        except (KeyError, TypeError, ValueError):
            notes.append(f"{path.name}: what it says of step {row['step']} cannot be read.")
    return rows


def ranks_text(ranks: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(str(begin) if begin == end else f"{begin}-{end}" for begin, end in runs)


def _fewer(parts: Iterable[Part], seconds: float) -> list[Part]:
    """At most `_MOST_SPANS` parts: neighbours of one phase are joined over gaps, then the shortest are left out."""
    kept, gap = list(parts), seconds / 4096
    while len(kept) > _MOST_SPANS and gap < seconds / 32:
        joined: list[Part] = []
        for phase, begin, end in kept:
            if joined and joined[-1][0] == phase and begin - joined[-1][2] <= gap:
                joined[-1] = (phase, joined[-1][1], end)
            else:
                joined.append((phase, begin, end))
        kept, gap = joined, 2 * gap
    longest = sorted(kept, key=lambda part: part[1] - part[2])[:_MOST_SPANS]
    return sorted(longest, key=lambda part: part[1])


def _same(one: tuple[Part, ...], other: tuple[Part, ...], near: float) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and abs(a[1] - b[1]) <= near and abs(a[2] - b[2]) <= near for a, b in zip(one, other, strict=True)
    )


def _written(lane: Lane) -> dict[str, Any]:
    ranks = {"ranks": ranks_text(lane.ranks)} if lane.ranks else {}
    return {"who": lane.who, **ranks, "spans": [[name, round(a, 4), round(b, 4)] for name, a, b in lane.parts]}


def _row(row: dict[str, Any]) -> Row:
    lanes = tuple(
        Lane(
            str(lane["who"]),
            tuple(_ranks(lane.get("ranks", ""))),
            tuple((str(name), float(begin), float(end)) for name, begin, end in lane["spans"]),
        )
        for lane in row["lanes"]
    )
    return Row(row["step"], bool(row.get("after")), float(row["seconds"]), lanes)


def _ranks(text: str) -> Iterable[int]:
    for run in filter(None, text.split(",")):
        begin, _, end = run.partition("-")
        yield from range(int(begin), int(end or begin) + 1)
