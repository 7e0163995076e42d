"""From a file of another system to settings of Pentad's, with a verdict on every key.

Invariant: each key of the file is in exactly one row; what is taken loads without unknown keys; what changes what is
learnt and cannot be had here stops the import, unless the user drops that key.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pentad.config.dialects import allocation, batches, catalog, correction, critic, objective, remainder, shaping
from pentad.config.dialects.entries import Entry, Foreign
from pentad.config.dialects.facts import Row, Sheet, begin
from pentad.config.dialects.finish import finish
from pentad.config.dialects.reading import read_foreign
from pentad.config.dialects.rules import ELIDED, Dialect, Rule
from pentad.config.dialects.values import keep
from pentad.errors import UserError

# Of TRL: fields of GRPOConfig that its other configurations do not have.
_OF_GRPO = frozenset(
    {
        "num_generations",
        "max_completion_length",
        "reward_funcs",
        "use_vllm",
        "beta",
        "scale_rewards",
        "GRPOTrainer.reward_funcs",
        "GRPOTrainer.args",
    }
)


@dataclass(frozen=True)
class Asked:
    """What the user says beside the file.

    Attributes:
        dialect: `--from`; None: by the keys.
        engine: the engine in place of the file's; None: the file's.
        gpus: number of GPUs; None: as the file says.
        variables: environment variables that may be used.
        drop: keys whose loss is accepted; `unknown` and `unsupported` stand for all of a kind.
        given: settings of Pentad's that the user gives besides.
        rows: number of rows of `data.train`, by its name; None where it is not known.
    """

    dialect: str | None = None
    engine: str | None = None
    gpus: int | None = None
    variables: Mapping[str, str] | None = None
    drop: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    rows: Callable[[str], int | None] = lambda _: None


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        path: the file.
        dialect: whose it is.
        rows: one for each of its keys; those of defaults follow.
        values: settings by their dotted names, in the order of the schema.
        missing: settings that must be given: name -> why.
        notes: what the user should know besides.
        dropped: foreign keys whose loss the user accepted.
    """

    path: Path
    dialect: Dialect
    rows: tuple[Row, ...]
    values: Mapping[str, Any]
    missing: Mapping[str, str]
    notes: tuple[str, ...]
    dropped: frozenset[str]

    @property
    def stops(self) -> list[Row]:
        """Rows that keep the import from going on."""
        return [row for row in self.rows if row.stops and not _is_dropped(row, self.dropped)]

    def refuse(self) -> None:
        """Raise one `UserError` for all rows that stop, or nothing if there are none."""
        if not self.stops:
            return
        lines = [f"{self.path}: {len(self.stops)} of its keys have no counterpart here"]
        lines += [f"  {row.entry.place}: {row.entry.key} = {row.entry.value}: {row.why}" for row in self.stops]
        drops = " ".join(f"--drop {row.entry.key}" for row in self.stops[:4])
        more = " ..." if len(self.stops) > 4 else ""
        raise UserError(
            "\n".join(lines), f"change them there, or accept their loss: pentad import {self.path} {drops}{more}"
        )


def import_file(path: Path, asked: Asked) -> Imported:
    """Read a file and judge its keys.

    Raises:
        UserError: it cannot be read, or it is not clear whose it is.
    """
    foreign = read_foreign(path, asked.variables or {})
    keys = [entry.key for entry in foreign.entries]
    dialect = catalog.named(asked.dialect) if asked.dialect else catalog.recognise(keys, foreign.modules, str(path))
    if dialect.name == "trl" and not _OF_GRPO & set(keys):
        raise UserError(
            f"{path}: nothing in it is of GRPOConfig; it may be of another trainer of TRL",
            "give its settings for GRPO, such as num_generations",
        )
    return _judge(foreign, path, dialect, asked)


def _judge(foreign: Foreign, path: Path, dialect: Dialect, asked: Asked) -> Imported:
    is_whole = not foreign.absent and not foreign.elided
    sheet = Sheet(engine=asked.engine, gpus=asked.gpus, is_whole=is_whole, given=asked.given)
    sheet.notes += [*dict.fromkeys(foreign.notes)]
    for entry in foreign.entries:
        sheet.rows.append(_row(entry, dialect.rule(entry.key), sheet, asked))
    for name in foreign.absent:
        sheet.notes.append(f"{name} is not here: the settings in it are missing")
    if is_whole:
        _add_defaults(sheet, dialect, asked)
    _settle_same(sheet)
    for row in sheet.rows:
        if row.verdict == "taken":
            sheet.values[row.key] = row.value
    sheet.rows_of_data = _rows_of(sheet.get("train"), asked)
    batches.assemble(sheet, warmup_unit=dialect.warmup_unit, steps_unit=dialect.steps_unit)
    allocation.assemble(sheet, colocated=dialect.colocated)
    objective.assemble(sheet)
    shaping.assemble(sheet)
    critic.assemble(sheet, by_step=dialect.warmup_unit == "step")
    remainder.assemble(sheet)
    correction.assemble(sheet)
    finish(sheet, asked.given)
    return Imported(path, dialect, _shown(sheet.rows), sheet.values, sheet.missing, tuple(sheet.notes), asked.drop)


def _rows_of(train: Any, asked: Asked) -> int | None:
    """Rows of all sources together; None where those of one are not known."""
    counts = [asked.rows(source) for source in ([train] if isinstance(train, str) else train or [])]
    return sum(count or 0 for count in counts) if counts and None not in counts else None


def _row(entry: Entry, rule: Rule | None, sheet: Sheet, asked: Asked) -> Row:
    if rule is not None and entry.value == ELIDED:
        return Row(entry, "not given", why="left out in the file")
    if rule is not None and not rule.why:
        if entry.value is None and not rule.does and rule.fact != "resume" and rule.convert is not keep:
            return Row(entry, "no meaning here", why="null: its default")
        if entry.unresolved:
            return _unresolved(entry, rule, sheet, asked)
    return begin(entry, rule)


def _unresolved(entry: Entry, rule: Rule, sheet: Sheet, asked: Asked) -> Row:
    needs = ", ".join(entry.unresolved)
    if rule.target in asked.given:
        return Row(entry, "not given", why=f"depends on {needs}; {rule.target} is given besides")
    if not rule.target:
        return Row(entry, "in doubt", why=f"depends on {needs}: {rule.does}", learns=True)
    name = next((item.strip("${}()").split(":")[0] for item in entry.unresolved), "")
    by_name = f", or --var {name}=VALUE" if name.isidentifier() else ""
    sheet.missing[rule.target] = f"{entry.key} depends on {needs}: give {rule.target}=VALUE{by_name}"
    return Row(entry, "not given", rule.target, why=sheet.missing[rule.target])


def _add_defaults(sheet: Sheet, dialect: Dialect, asked: Asked) -> None:
    """What the other system would use where the file says nothing."""
    # What the file gives, also where it depends on something that is not known.
    facts = {row.fact for row in sheet.rows if row.fact}
    keys = {row.key for row in sheet.rows if row.key and not row.fact} | {row.entry.key for row in sheet.rows}
    if sheet.of("allocation", "trainer_layout"):
        facts |= {"nodes", "gpus_per_node"}
    if "steps" in facts:
        facts |= {"epochs"}
    if "samples" in facts:
        facts |= {"device_samples"}
    for key, value in dialect.defaults.items():
        rule = dialect.rule(key)
        if rule is None or key in keys or (rule.fact and rule.fact in facts) or (rule.key and rule.key in keys):
            continue
        if rule.target in sheet.missing or rule.target in asked.given:
            continue
        sheet.rows.append(begin(Entry(key, value, f"{dialect.title}'s default", default=True), rule))


def _settle_same(sheet: Sheet) -> None:
    """Of keys that lead to one setting or fact, the file's go before defaults; two values of the file are in doubt."""
    first: dict[tuple[str, str], Row] = {}
    for row in sheet.rows:
        if row.verdict not in (None, "taken") or not (row.fact or row.key):
            continue
        name = ("fact", row.fact) if row.fact else ("key", row.key)
        other = first.setdefault(name, row)
        if other is row:
            continue
        if row.entry.default:
            row.verdict, row.why = "no meaning here", f"{other.entry.key} is given"
        elif row.value != other.value:
            row.verdict = "in doubt"
            row.why = f"{row.key} is {other.value} by {other.entry.key} ({other.entry.place})"


def _shown(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of the file, then those of defaults that matter."""
    given = [row for row in rows if not row.entry.default]
    defaults = [row for row in rows if row.entry.default and row.verdict in ("taken", "not supported here")]
    return (*given, *defaults)


def _is_dropped(row: Row, drop: frozenset[str]) -> bool:
    kinds = {"unknown": "unknown", "not supported here": "unsupported", "in doubt": "doubtful"}
    return row.entry.key in drop or kinds.get(row.verdict or "") in drop


def accept(imported: Imported, drop: Sequence[str]) -> Imported:
    """The same with more keys dropped.

    Raises:
        UserError: a key that is to be dropped is not in the file.
    """
    keys = {row.entry.key for row in imported.rows} | {"unknown", "unsupported", "doubtful"}
    if absent := [key for key in drop if key not in keys]:
        raise UserError(f"--drop {absent[0]}: there is no such key in {imported.path}", "give a key of the file")
    return replace(imported, dropped=imported.dropped | frozenset(drop))
