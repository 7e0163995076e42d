"""What a run has warned of: that nothing is learnt, that engines and trainer drift apart.

Invariant: a warning that was shown stands in warnings.jsonl of the run directory, with the step that it belongs to.
"""

from collections.abc import Iterator

from pentad.record.jsonl import JsonLines, read_jsonl
from pentad.record.run_dir import RunDir


class WarningLog:
    """Writes warnings.jsonl: `step`, `name`, `text`. It appears with the first warning."""

    def __init__(self, run_dir: RunDir) -> None:
        self._lines = JsonLines(run_dir.warnings, run_dir)

    def write(self, step: int, name: str, text: str) -> None:
        """Write one warning.

        Raises:
            UserError: the disk is full.
        """
        self._lines.append({"step": step, "name": name, "text": text})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_warnings(run_dir: RunDir, notes: list[str]) -> Iterator[str]:
    """The warnings of a run, one sentence each.

    Args:
        notes: is told of an unfinished last line.

    Raises:
        UserError: the file is damaged.
    """
    if run_dir.warnings.is_file():
        for row in read_jsonl(run_dir.warnings, notes):
            yield f"Warning of step {row['step']}: {row.get('text')}."
