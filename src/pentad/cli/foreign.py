"""What `pentad import` does, and files of other systems given to `pentad train` and `pentad config`.

Invariant: a file of another system is run only where no key is in doubt; otherwise it is refused with what to give.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pentad.config.dialects.catalog import is_own
from pentad.config.dialects.finish import nested
from pentad.config.dialects.importing import Asked, Imported, accept, import_file
from pentad.config.dialects.reading import keys_of
from pentad.config.dialects.write import as_json, as_table, as_yaml
from pentad.config.loading.load import load_settings
from pentad.config.loading.yaml_io import Document, read_document, read_value
from pentad.errors import UserError

_SCRIPTS = (".sh", ".bash", ".py")
# Of the environment, only this is read without being asked for.
_HOME = "HOME"


def import_command(options: argparse.Namespace) -> int:
    """Print the table and write the configuration; refuse what changes what is learnt and cannot be had."""
    values = dict(map(_split, options.overrides))
    for name, number in (("--gpus", options.gpus), ("--rows", options.rows)):
        if number is not None and number < 1:
            raise UserError(f"{name} is {number}", "give 1 or more")
    asked = Asked(
        dialect=options.dialect,
        engine=options.engine,
        gpus=options.gpus,
        variables=_variables(options.var),
        given=frozenset(values),
        rows=count_rows if options.rows is None else lambda _: options.rows,
    )
    imported = accept(import_file(options.file, asked), options.drop)
    imported = replace(imported, values={**imported.values, **values})
    if options.json:
        print(json.dumps(as_json(imported), indent=2, ensure_ascii=False, default=str))
    else:
        print(as_table(imported), file=sys.stdout if options.out else sys.stderr)
    imported.refuse()
    text = as_yaml(imported)
    problem = check(imported, text)
    if options.out:
        if options.out.exists():
            raise UserError(f"{options.out} exists", "name another file, or remove it")
        options.out.write_text(text, encoding="utf-8")
        print(f"written: {options.out}", file=sys.stderr if options.json else sys.stdout)
    elif not options.json:
        print(text, end="")
    if problem is not None:
        print(f"this does not run here as it stands:\n{problem}", file=sys.stderr)
    return 0


def check(imported: Imported, text: str) -> UserError | None:
    """What a run would refuse of the configuration, or None; settings that are missing are told elsewhere."""
    from pentad.cli.loading import CHECKS

    document = read_document(text, imported.path.with_suffix(".yaml"))
    standins = {"trainer.total_steps": 10**9}
    given = [f"{name}={standins.get(name, 'x')}" for name in imported.missing if name not in imported.values]
    try:
        load_settings(imported.path, given, CHECKS, document)
    except UserError as error:
        return error
    return None


def foreign_document(path: Path, overrides: Sequence[str]) -> Document | None:
    """The settings of a file of another system, as of a configuration; None if the file is Pentad's.

    Raises:
        UserError: a key of the file is in doubt, or a setting is missing.
    """
    if not path.is_file() or not _is_foreign(path):
        return None
    names = frozenset(override.partition("=")[0] for override in overrides)
    asked = Asked(variables=_variables(()), given=names, rows=count_rows)
    imported = import_file(path, asked)
    imported.refuse()
    if imported.missing:
        lines = [f"{path} ({imported.dialect.title}) does not give all that a run needs"]
        lines += [f"  {name}: {why}" for name, why in imported.missing.items()]
        raise UserError("\n".join(lines), "give " + " ".join(f"{name}=VALUE" for name in imported.missing))
    document = Document(nested(dict(imported.values)))
    document.origins = {tuple(name.split(".")): f"{path.name}, imported" for name in imported.values}
    for row in imported.rows:
        if row.verdict == "taken":
            document.origins[tuple(row.key.split("."))] = row.entry.place
    document.notices = [
        f"{path.name} is a file of {imported.dialect.title}: `pentad import {path}` shows what became of it"
    ]
    document.notices += imported.notes
    return document


def _is_foreign(path: Path) -> bool:
    if path.suffix in _SCRIPTS:
        return True
    try:
        return not is_own(keys_of(path))
    except UserError:
        return False  # the loader will say what is wrong with it


def count_rows(source: str) -> int | None:
    """The number of rows of a file or a directory of files; None where only reading all of it would tell."""
    path = Path(source)
    files = (
        sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".parquet")) if path.is_dir() else [path]
    )
    total = 0
    for file in files:
        if not file.is_file():
            return None
        if file.suffix == ".parquet":
            from pyarrow.parquet import read_metadata

            total += read_metadata(file).num_rows
        elif file.suffix == ".jsonl":
            with file.open("rb") as lines:
                total += sum(1 for line in lines if line.strip())
        else:
            return None
    return total


def _variables(named: Sequence[str]) -> dict[str, str]:
    found = {_HOME: os.environ[_HOME]} if _HOME in os.environ else {}
    for item in named:
        name, equals, value = item.partition("=")
        if not equals:
            if name not in os.environ:
                raise UserError(f"--var {name}: the environment has no such variable", f"write --var {name}=VALUE")
            value = os.environ[name]
        found[name] = value
    return found


def _split(override: str) -> tuple[str, Any]:
    name, equals, value = override.partition("=")
    if not equals or not name or not value:
        raise UserError(f"{override!r} is no setting", "write section.key=VALUE")
    try:
        return name, read_value(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{override!r}: the value is not valid YAML", f"put text in quotes: {name}='\"...\"'") from None
