"""The work sheet of an import: rows of verdicts, facts waiting to be put together, and the settings so far.

Invariant: every row gets one verdict, with a reason where it is not `taken`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pentad.config.dialects.entries import Entry
from pentad.config.dialects.rules import FACTS, Rule, Unsupported, Verdict
from pentad.config.loading.keys import known_keys


@dataclass
class Row:
    """What became of one key.

    Attributes:
        entry: the key as the file gives it.
        verdict: the judgement; empty while a fact waits.
        key: the setting here; empty if there is none.
        value: its value here.
        why: the reason, or what differs.
        learns: of a key that is not supported, whether leaving it out changes what is learnt.
        fact: the fact that it gives.
    """

    entry: Entry
    verdict: Verdict | None = None
    key: str = ""
    value: Any = None
    why: str = ""
    learns: bool = False
    fact: str = ""

    @property
    def stops(self) -> bool:
        """Whether an import must not go on without the user's word."""
        return self.verdict in ("unknown", "in doubt") or (self.verdict == "not supported here" and self.learns)


@dataclass
class Sheet:
    """Rows, facts and settings of an import.

    Attributes:
        rows: one for each entry, in their order.
        values: settings here by their dotted names.
        missing: settings that the run needs and nothing gives: name -> why.
        notes: what the user should know besides.
        rows_of_data: number of rows of the training data; None where it is not known.
        engine: the engine that the user asks for in place of the file's.
        gpus: the number of GPUs that the user states.
        updates: optimizer steps of one generation, where the sizes of TRL give them.
        is_whole: whether all settings of the other system are known: those of the file, and its own defaults.
        given: settings of Pentad's that the user gives besides.
    """

    rows: list[Row] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows_of_data: int | None = None
    engine: str | None = None
    gpus: int | None = None
    updates: int = 1
    is_whole: bool = True
    given: frozenset[str] = frozenset()

    def of(self, *facts: str) -> list[Row]:
        """Rows of these facts that wait."""
        return [row for row in self.rows if row.fact in facts and row.verdict is None]

    def has(self, fact: str, *, given: bool = False) -> bool:
        """Whether a fact waits; with `given`, from the file itself and not from a default."""
        return any(not (given and row.entry.default) for row in self.of(fact))

    def get(self, fact: str, default: Any = None) -> Any:
        """The value of a fact that waits."""
        rows = self.of(fact)
        return rows[0].value if rows else default

    def take(self, key: str, value: Any, *facts: str, why: str = "") -> None:
        """Set a setting from facts. Where the schema has no such setting, the facts are not supported."""
        if not exists(key):
            self.refuse(f"there is no setting {key} in this version", *facts)
            return
        self.values[key] = value
        self._settle(facts, "taken", key, value, why)

    def nothing(self, why: str, *facts: str) -> None:
        """Facts that need no setting here."""
        self._settle(facts, "no meaning here", "", None, why)

    def refuse(self, does: str, *facts: str, learns: bool = True) -> None:
        """Facts that cannot be had here."""
        self._settle(facts, "not supported here", "", None, does, learns=learns)

    def _settle(
        self, facts: Iterable[str], verdict: Verdict, key: str, value: Any, why: str, *, learns: bool = False
    ) -> None:
        for row in self.of(*facts):
            row.verdict, row.key, row.value, row.learns = verdict, key, value, learns
            row.why = why or row.why


def exists(key: str) -> bool:
    """Whether a setting exists here, or lies in one of the free mappings."""
    keys = known_keys()
    return key in keys or any(item.free and key.startswith(item.name + ".") for item in keys.values())


def begin(entry: Entry, rule: Rule | None) -> Row:
    """The row of an entry by its rule; a fact still waits."""
    if rule is None:
        return Row(entry, "unknown", why="no rule knows this key", learns=True)
    if rule.why:
        return Row(entry, "no meaning here", why=rule.why)
    if rule.does:
        if _is_off(entry.value, rule.off):
            return Row(entry, "no meaning here", why=f"off, as here: {rule.does}")
        return Row(entry, "not supported here", why=rule.does, learns=rule.learns)
    value = entry.value if rule.convert is None else rule.convert(entry.value)
    if isinstance(value, Unsupported):
        return Row(entry, "not supported here", why=value.does, learns=value.learns)
    if hasattr(value, "why"):
        return Row(entry, "no meaning here", why=value.why)
    if rule.fact:
        return Row(entry, None, FACTS[rule.fact], value, fact=rule.fact)
    if not exists(rule.key):
        return Row(entry, "not supported here", why=f"there is no setting {rule.key} in this version", learns=True)
    return Row(entry, "taken", rule.key, value)


def _is_off(value: Any, off: tuple[Any, ...]) -> bool:
    return any(value == item and isinstance(value, bool) == isinstance(item, bool) for item in off)
