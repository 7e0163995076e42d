"""An import as text: a commented configuration, a table for the terminal, JSON."""

from typing import Any

from pentad.config.dialects.facts import Row
from pentad.config.dialects.importing import Imported
from pentad.config.loading.interpolate import escape
from pentad.config.loading.keys import known_keys, owner
from pentad.config.loading.yaml_io import write_value

_VERDICTS = ("taken", "not given", "no meaning here", "not supported here", "in doubt", "unknown")


def as_yaml(imported: Imported) -> str:
    """The configuration, each line with the key that it comes from; what must be given stands there as a comment."""
    lines = [f"# Imported from {imported.path.name} ({imported.dialect.title}) by `pentad import`."]
    lines += [f"# {note}" for note in imported.notes]
    for row in imported.rows:
        if row.verdict in ("not supported here", "unknown", "in doubt") and not row.entry.default:
            lines.append(f"# Left out: {row.entry.key} = {_short(row.entry.value)}: {row.why}")
    sources = _sources(imported)
    body: list[tuple[str, str]] = []
    above: tuple[str, ...] = ()
    for name, value in _with_missing(imported):
        *sections, last = _path(name)
        for depth in range(len(sections)):
            if above[: depth + 1] != tuple(sections[: depth + 1]):
                body.append(("  " * depth + write_value(sections[depth]) + ":", ""))
        above = tuple(sections)
        indent = "  " * len(sections)
        if name in imported.missing and name not in imported.values:
            body.append((f"{indent}# {last}: ", f"give it: {imported.missing[name]}"))
        else:
            body.append((f"{indent}{write_value(last)}: {write_value(escape(value))}", sources.get(name, "")))
    body = [(f"# {text}" if _is_hollow(body, number) else text, comment) for number, (text, comment) in enumerate(body)]
    width = min(60, max((len(text) for text, comment in body if comment), default=0))
    lines += [f"{text:<{width}}  # {_one_line(comment)}" if comment else text for text, comment in body]
    return "\n".join(lines) + "\n"


def as_table(imported: Imported) -> str:
    """Every key with its verdict, for the terminal."""
    counts = {verdict: sum(row.verdict == verdict for row in _given(imported)) for verdict in _VERDICTS}
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines = [f"{imported.path}: {imported.dialect.title}; {len(_given(imported))} keys: {summary}", ""]
    for row in _given(imported):
        place = row.entry.place.rpartition(":")[2]
        lines.append(f"{place:>5}  {row.entry.key} = {_short(row.entry.value)}")
        lines.append(f"         {_result(row)}")
    if defaults := [row for row in imported.rows if row.entry.default]:
        lines += ["", f"Not in the file; {imported.dialect.title}'s own defaults, which differ from those here:"]
        lines += [f"       {row.entry.key} = {_short(row.entry.value)}\n         {_result(row)}" for row in defaults]
    if imported.missing:
        lines += ["", "To be given:"]
        lines += [f"       {name}=VALUE  ({why})" for name, why in imported.missing.items()]
    if imported.notes:
        lines += ["", *(f"note: {note}" for note in imported.notes)]
    return "\n".join(lines) + "\n"


def as_json(imported: Imported) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "file": str(imported.path),
        "dialect": imported.dialect.name,
        "keys": [
            {
                "key": row.entry.key,
                "value": row.entry.value,
                "place": row.entry.place,
                "default": row.entry.default,
                "verdict": row.verdict,
                "to": row.key or None,
                "as": row.value if row.verdict == "taken" else None,
                "why": row.why,
                "stops": row in imported.stops,
            }
            for row in imported.rows
        ],
        "settings": dict(imported.values),
        "missing": dict(imported.missing),
        "notes": list(imported.notes),
    }


def _given(imported: Imported) -> list[Row]:
    return [row for row in imported.rows if not row.entry.default]


def _result(row: Row) -> str:
    if row.verdict == "taken":
        return f"-> {row.key} = {_short(row.value)}" + (f"  ({row.why})" if row.why else "")
    learns = " (changes what is learnt)" if row.verdict == "not supported here" and row.learns else ""
    return f"{row.verdict}{learns}: {row.why}"


def _sources(imported: Imported) -> dict[str, str]:
    """Settings -> the keys that they come from."""
    found: dict[str, list[str]] = {}
    for row in imported.rows:
        if row.verdict == "taken":
            by = f"{imported.dialect.title}'s default" if row.entry.default else row.entry.key
            found.setdefault(row.key, []).append(by)
            if row.why:
                found[row.key].append(f"({row.why})")
    texts = {}
    for name, parts in found.items():
        known = list(dict.fromkeys(parts))
        texts[name] = ", ".join(known[:2]) + (f" and {len(known) - 2} more" if len(known) > 2 else "")
    return texts


def _with_missing(imported: Imported) -> list[tuple[str, Any]]:
    order = {name: number for number, name in enumerate(known_keys())}

    def rank(item: tuple[str, Any]) -> int:
        return order[getattr(owner(tuple(item[0].split("."))), "name", "")]

    absent = [(name, None) for name in imported.missing if name not in imported.values]
    return sorted([*imported.values.items(), *absent], key=rank)


def _path(name: str) -> list[str]:
    return name.split(".")


def _is_hollow(lines: list[tuple[str, str]], number: int) -> bool:
    """Whether a section has nothing but comments below it; it would read as null."""
    text = lines[number][0]
    if not text.endswith(":"):
        return False
    depth = len(text) - len(text.lstrip())
    for below, _ in lines[number + 1 :]:
        if len(below) - len(below.lstrip()) <= depth:
            return True
        if not below.lstrip().startswith("#"):
            return False
    return True


def _short(value: Any) -> str:
    text = write_value(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
