"""Warnings of a run's processes, brought to the terminal.

Invariant: a warning that Pentad's own code logs in any process of a run is shown to the user, and each text once.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

# More different warnings than these in one process are not kept.
_MOST = 100


class NoticeLog(logging.Handler):
    """The warnings of this process, in order, each text once.

    It collects records of level WARNING and above of the loggers below `pentad`. Warnings of other packages stay in the
    process's log file: a user can seldom act on them.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, None] = {}
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's message."""
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        """Keep a text."""
        with self._guard:
            if len(self._texts) < _MOST:
                self._texts.setdefault(text)

    def after(self, count: int) -> list[str]:
        """All texts but the first `count`."""
        with self._guard:
            return list(self._texts)[count:]


def collect_notices() -> NoticeLog:
    """Begin to collect the warnings of this process. Call it once a process."""
    log = NoticeLog()
    logging.getLogger("pentad").addHandler(log)
    return log


class NoticeBoard:
    """Shows the warnings of all processes on the driver's terminal. A sink: it looks for new ones at each step.

    Args:
        fetch: given how many texts of each process are known, returns the further ones by process.
        show: prints one line.
    """

    def __init__(
        self, fetch: Callable[[Mapping[str, int]], Mapping[str, Sequence[str]]], show: Callable[[str], None]
    ) -> None:
        self._fetch = fetch
        self._show = show
        self._known: dict[str, int] = {}
        self._shown: set[str] = set()

    def update(self) -> None:
        """Show what is new."""
        sources: dict[str, list[str]] = {}
        for process, texts in self._fetch(self._known).items():
            self._known[process] = self._known.get(process, 0) + len(texts)
            for text in texts:
                sources.setdefault(text, []).append(process)
        for text, processes in sources.items():
            if text not in self._shown:
                self._shown.add(text)
                more = f" and {len(processes) - 1} more" if len(processes) > 1 else ""
                self._show(f"warning of {processes[0]}{more}: {text}")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show what is new; the metrics are not read."""
        self.update()

    def close(self) -> None:
        """Show what came after the last step."""
        self.update()
