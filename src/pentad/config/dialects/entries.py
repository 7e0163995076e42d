"""What a file of another system says: keys, values, and the lines they stand on. No judgement yet."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One setting as the file gives it.

    Attributes:
        key: dotted name there.
        value: after variables and interpolations; None is null.
        place: `FILE:LINE`.
        unresolved: what it depends on and the file does not say, such as `$DATA_DIR`; the value is then text.
        default: the file does not give it; it is the other system's own default.
    """

    key: str
    value: Any
    place: str
    unresolved: tuple[str, ...] = ()
    default: bool = False


@dataclass
class Foreign:
    """A file of another system.

    Attributes:
        entries: in the order of the file; of a key given twice, the last counts and is the one that stays.
        modules: Python modules that a launch script runs.
        absent: files that it names and that are not there: the settings in them are missing.
        elided: whether the file says itself that settings are left out (`...`).
        notes: what was left out of the text, and assumptions about it.
    """

    entries: list[Entry] = field(default_factory=list)
    modules: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    elided: bool = False
    notes: list[str] = field(default_factory=list)

    def put(self, entries: Sequence[Entry]) -> None:
        """Add entries; a later one replaces an earlier one of the same key."""
        for entry in entries:
            self.entries = [old for old in self.entries if old.key != entry.key] + [entry]

    def remove(self, key: str) -> None:
        """Take out a key, or a whole section, as Hydra's `~key` does."""
        self.entries = [old for old in self.entries if old.key != key and not old.key.startswith(key + ".")]

    def under(self, prefix: str) -> "Foreign":
        """The same entries in a section of their own."""
        moved = [replace(entry, key=f"{prefix}.{entry.key}") for entry in self.entries]
        return Foreign(moved, self.modules, self.absent, self.elided, self.notes)


def flatten(values: Any, prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves of nested mappings; lists and empty mappings are leaves."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in values.items():
        path = (*prefix, name) if name.startswith("...") else (*prefix, *name.split("."))
        if isinstance(value, dict) and value:
            found += flatten(value, path)
        else:
            found.append((path, value))
    return found
