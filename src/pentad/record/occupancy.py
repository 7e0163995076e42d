"""What processes did with their time: lanes without overlaps, and shares of a window.

Invariant: in a lane a process is in one phase at a time. An engine that is given weights or is asked something else
does not generate meanwhile, and a trainer rank answers calls in the order in which they were made.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from pentad.record.phases import ASLEEP, CRITIC, ENGINE, GENERATION, REFERENCE, TRAINER, is_computing, kind_of, rank_of
from pentad.record.timeline import Span, Window

Part = tuple[str, float, float]
"""Phase, begin and end in seconds from the window's beginning."""
Lanes = Mapping[str, Sequence[Part]]
"""Parts by process, in order of time."""

_KINDS = (ENGINE, TRAINER, REFERENCE, CRITIC)


def lanes_of(window: Window) -> dict[str, list[Part]]:
    """A lane of each process that the timeline knows, also of one that did nothing; engines first, then the trainer."""
    spans: dict[str, list[Span]] = {who: [] for who in sorted(window.known, key=_place)}
    for span in window.spans:
        spans[span.who].append(span)
    return {who: _flat(mine) for who, mine in spans.items()}


def utilisation(lanes: Lanes, seconds: float) -> dict[str, float]:
    """`util/*` of a window. What it has no processes for is absent.

    Args:
        seconds: of the window.
    """
    engines = _busy(lanes, ENGINE, lambda phase: phase == GENERATION)
    trainer = _busy(lanes, TRAINER, is_computing)
    found: dict[str, float] = {}
    if seconds <= 0:
        return found
    apart = [(name, _busy(lanes, kind, is_computing)) for name, kind in (("reference", REFERENCE), ("critic", CRITIC))]
    for name, group in (("engines", engines), ("trainer", trainer), *apart):
        if group:
            found[f"util/{name}"] = sum(map(_length, group)) / len(group) / seconds
    if engines and trainer:
        some_engine, some_rank = _union(engines), _union([*trainer, *(one for _, group in apart for one in group)])
        either = _length(_union([some_engine, some_rank]))
        found["util/both"] = max(0.0, _length(some_engine) + _length(some_rank) - either) / seconds
        found["util/neither"] = max(0.0, seconds - either) / seconds
    return found


def _place(who: str) -> tuple[int, str, int]:
    kind = kind_of(who)
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS), kind, rank_of(who) or 0


def _flat(spans: Iterable[Span]) -> list[Part]:
    """The parts of one process: at each moment the span that goes before the others."""
    waiting = sorted(spans, key=_order)
    edges = sorted({edge for span in waiting for edge in (span.begin, span.end)})
    starting = sorted(waiting, key=lambda span: span.begin, reverse=True)
    active: list[Span] = []
    parts: list[Part] = []
    for begin, end in itertools.pairwise(edges):
        while starting and starting[-1].begin <= begin:
            active.append(starting.pop())
        active = [span for span in active if span.end > begin]
        if not active:
            continue
        phase = min(active, key=_order).phase
        if parts and parts[-1][0] == phase and parts[-1][2] == begin:
            parts[-1] = (phase, parts[-1][1], end)
        else:
            parts.append((phase, begin, end))
    return parts


def _order(span: Span) -> tuple[int, float]:
    """What is asked of an engine goes before generation, and any work before sleep; else the first call."""
    return (2 if span.phase == ASLEEP else 1 if span.phase == GENERATION else 0), span.begin


def _busy(lanes: Lanes, kind: str, counts: Callable[[str], bool]) -> list[list[tuple[float, float]]]:
    return [
        [(begin, end) for phase, begin, end in parts if counts(phase)]
        for who, parts in lanes.items()
        if kind_of(who) == kind
    ]


def _length(intervals: Iterable[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in intervals)


def _union(groups: Iterable[Iterable[tuple[float, float]]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(interval for group in groups for interval in group):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined
