"""When an engine generates, for the timeline.

Invariant: an engine generates while it has requests and is neither paused nor lost. Requests that wait at a paused
engine are no work.
"""

from pentad.record.phases import GENERATION
from pentad.record.timeline import Timeline


class Generating:
    """The spans of generation of one engine.

    Args:
        who: its name.
    """

    def __init__(self, timeline: Timeline, who: str) -> None:
        self._timeline, self._who = timeline, who
        self._wanted = self._paused = False
        self._span: int | None = None

    def want(self, wanted: bool) -> None:
        """Whether the engine has requests, and is there."""
        self._wanted = wanted
        self._note()

    def pause(self, paused: bool) -> None:
        """Whether it is paused."""
        self._paused = paused
        self._note()

    def _note(self) -> None:
        generates = self._wanted and not self._paused
        if generates and self._span is None:
            self._span = self._timeline.begin(self._who, GENERATION)
        elif not generates and self._span is not None:
            self._timeline.end(self._span)
            self._span = None
