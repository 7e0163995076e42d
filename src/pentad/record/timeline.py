"""Who did what when, as the driver sees it: from the calls that it makes and the answers that it gets.

Invariant: nothing is asked of any process for it. A window holds each moment once: what goes on over its end is cut
there, and goes on in the next. Memory is bounded: in a window with very many spans, those of one phase of one process
that almost touch are joined.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

# Spans of one phase of one process with less than that between them are one, in seconds.
_GAP_S = 1e-3
# So many spans a window are kept as they are.
_MOST = 20_000


@dataclass(frozen=True)
class Span:
    """One process at one phase.

    Attributes:
        who: the process, as errors name it ("trainer rank 0"), or "rewards", "driver", ...
        begin: in seconds from the window's beginning, as `end` is.
    """

    who: str
    phase: str
    begin: float
    end: float


@dataclass(frozen=True)
class Window:
    """What happened between two moments.

    Attributes:
        began: seconds from the beginning of the timeline.
        seconds: how long it is.
        spans: in no order; those of one process may overlap.
        known: whoever has had a span since the timeline began.
    """

    began: float
    seconds: float
    spans: tuple[Span, ...]
    known: tuple[str, ...]


class Timeline:
    """Takes spans down.

    Args:
        clock: seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._origin = self._began = clock()
        self._handles = count()
        self._open: dict[int, tuple[str, str, float]] = {}
        self._closed: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self._known: dict[str, None] = {}
        self._size, self._most, self._gap = 0, _MOST, _GAP_S

    def begin(self, who: str, phase: str, at: float | None = None) -> int:
        """A span begins; returns what `end` is to be given.

        Args:
            at: when, by the clock, if it was earlier.
        """
        handle = next(self._handles)
        self._known[who] = None
        self._open[handle] = (who, phase, self.clock() if at is None else at)
        return handle

    def end(self, handle: int) -> None:
        """The span ends; one that has ended already stays as it is."""
        if (span := self._open.pop(handle, None)) is not None:
            self._keep(*span, self.clock())

    @contextmanager
    def span(self, who: Iterable[str], phase: str) -> Generator[None]:
        """The block is a span of each."""
        handles = [self.begin(one, phase) for one in who]
        try:
            yield
        finally:
            for handle in handles:
                self.end(handle)

    def cut(self) -> Window:
        """What has happened since the last cut, or since the beginning; the next window begins."""
        now = self.clock()
        for handle, (who, phase, begin) in list(self._open.items()):
            self._keep(who, phase, begin, now)
            self._open[handle] = (who, phase, now)
        start = self._began
        spans = tuple(
            Span(who, phase, begin - start, end - start)
            for (who, phase), parts in self._closed.items()
            for begin, end in parts
        )
        self._closed, self._began = {}, now
        self._size, self._most, self._gap = 0, _MOST, _GAP_S
        return Window(start - self._origin, now - start, spans, tuple(self._known))

    def _keep(self, who: str, phase: str, begin: float, end: float) -> None:
        begin = max(begin, self._began)
        if end <= begin:
            return
        parts = self._closed.setdefault((who, phase), [])
        if not _joined(parts, begin, end, self._gap):
            self._size += 1
        if self._size > self._most:
            self._coarsen()

    def _coarsen(self) -> None:
        """Join what is nearer together than twice as far as before."""
        self._gap *= 2
        for key, parts in self._closed.items():
            fewer: list[tuple[float, float]] = []
            for begin, end in sorted(parts):
                _joined(fewer, begin, end, self._gap)
            self._closed[key] = fewer
        self._size = sum(map(len, self._closed.values()))
        # Of very many processes each has at least one span a phase.
        self._most = max(_MOST, 2 * self._size) if self._gap > 1.0 else _MOST


def _joined(parts: list[tuple[float, float]], begin: float, end: float, gap: float) -> bool:
    """Add a part to the parts, and say whether it was joined to the last of them."""
    if parts and begin - parts[-1][1] <= gap:
        parts[-1] = (min(parts[-1][0], begin), max(parts[-1][1], end))
        return True
    parts.append((begin, end))
    return False
