"""From a file of another system to its entries: YAML, JSON, launch scripts, Python scripts.

Invariant: every setting of the file becomes an entry with its line, or a note says what was left out. Nothing is
executed, and of the environment only what the caller gives is used.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pentad.config.dialects.entries import Entry, Foreign, flatten
from pentad.config.dialects.hydra import Command, read_command
from pentad.config.dialects.interpolation import resolve
from pentad.config.dialects.python_source import read_python
from pentad.config.dialects.rules import ELIDED
from pentad.config.dialects.shell import commands
from pentad.config.loading.yaml_io import read_document, read_text
from pentad.errors import UserError

_PACKAGE = re.compile(r"^\s*#\s*@package\s+([\w.]+)\s*$", re.MULTILINE)
_SETTINGS = 2  # a command with at least so many settings is a launch command


def read_foreign(path: Path, variables: Mapping[str, str]) -> Foreign:
    """Read a file of another system.

    Args:
        path: .yaml, .yml, .json, .sh or .py; by its contents, if it ends otherwise.
        variables: environment variables that are known.

    Raises:
        UserError: it cannot be read, or has no settings.
    """
    text = read_text(path)
    if path.suffix == ".py":
        foreign = read_python(text, path)
    elif path.suffix in (".yaml", ".yml", ".json") or (path.suffix not in (".sh", ".bash") and _is_yaml(text)):
        foreign = _read_yaml(text, path, variables)
    else:
        foreign = _read_script(text, path, variables)
    if not foreign.entries:
        raise UserError(f"{path}: it has no settings", "give a configuration, or a script with a launch command")
    return foreign


def keys_of(path: Path) -> list[str]:
    """The keys of a YAML or JSON file, as the other system has them.

    Raises:
        UserError: it is neither, or a key is given twice.
    """
    return [entry.key for entry in _parse(read_text(path), path).entries]


def _is_yaml(text: str) -> bool:
    return not text.startswith("#!") and re.search(r"^[\w.]+:(\s|$)", text, re.MULTILINE) is not None


def _read_yaml(text: str, path: Path, variables: Mapping[str, str]) -> Foreign:
    foreign = _parse(text, path)
    foreign.entries = resolve(foreign.entries, variables)
    return _with_verl_file(foreign, path, variables)


def _parse(text: str, path: Path) -> Foreign:
    foreign = Foreign()
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.strip() == ELIDED:
            lines[number] = line.replace(ELIDED, f'"{ELIDED}{number + 1}": "{ELIDED}"')
    # Tabs stand in JSON as white space; in YAML they may not.
    document = read_document("\n".join(lines).expandtabs(2) if path.suffix == ".json" else "\n".join(lines), path)
    if document.problems:
        raise document.problems[0]
    package = _PACKAGE.search(text)
    prefix = tuple(package[1].split(".")) if package and package[1] != "_global_" else ()
    leaves = flatten(document.values)
    for key, value in leaves:
        line = next((document.lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in document.lines), 1)
        if value == ELIDED and key[-1].startswith(ELIDED):
            foreign.elided, key = True, key[:-1]
            foreign.notes.append(f"{path.name}:{line}: `...` stands for settings that are not in the file")
            if sum(other[: len(key)] == key for other, _ in leaves) > 1 or not key:
                continue
        foreign.put([Entry(".".join((*prefix, *key)), value, f"{path.name}:{line}")])
    return foreign


def _with_verl_file(foreign: Foreign, path: Path, variables: Mapping[str, str]) -> Foreign:
    """Trinity-RFT keeps verl's settings in a file that `trainer.trainer_config_path` names."""
    named = next((entry for entry in foreign.entries if entry.key == "trainer.trainer_config_path"), None)
    if named is None or not isinstance(named.value, str) or not named.value:
        return foreign
    found = _near(path, named.value)
    if found is None:
        foreign.absent = (*foreign.absent, named.value)
        return foreign
    inner = _read_yaml(read_text(found), found, variables).under("trainer.trainer_config")
    foreign.entries = inner.entries + foreign.entries
    return foreign


def _near(path: Path, name: str) -> Path | None:
    """A file that is named in another: from where the command runs, or from beside that file or a folder above it."""
    for folder in (Path(), path.parent, *path.resolve().parents):
        if (folder / name).is_file():
            return folder / name
    return None


def _read_script(text: str, path: Path, variables: Mapping[str, str]) -> Foreign:
    found = [read_command(words, path.name) for words in commands(text, variables)]
    launches = [command for command in found if _is_launch(command)]
    if not launches:
        raise UserError(
            f"{path}: no command with settings is in it",
            "give a script with a command such as `python -m MODULE key=value`",
        )
    modules = {command.modules[-1] if command.modules else "" for command in launches}
    if len(launches) > 1 and len(modules) > 1:
        raise UserError(
            f"{path}: it launches {len(launches)} commands with settings: {', '.join(sorted(modules))}",
            "give a script with one of them",
        )
    return _of_command(launches[-1], path, variables, len(launches))


def _is_launch(command: Command) -> bool:
    settings = len(command.entries) + (len(command.flags) if command.modules or command.flags else 0)
    return settings >= _SETTINGS or (bool(command.files) and bool(command.modules))


def _of_command(command: Command, path: Path, variables: Mapping[str, str], count: int) -> Foreign:
    foreign = Foreign(modules=tuple(command.modules))
    if count > 1:
        foreign.notes.append(f"{path.name}: {count} launch commands; the last is read")
    for word in command.files:
        found = None if word.unresolved else _near(path, word.text)
        if found is None:
            foreign.absent = (*foreign.absent, word.text)
        else:
            foreign.put(_parse(read_text(found), found).entries)
    for key in command.removed:
        foreign.remove(key)
    dotted = any("." in entry.key for entry in command.entries)
    if dotted:
        _launcher_flags(command, path, foreign)
    foreign.put(command.entries if dotted else [*command.flags, *command.entries])
    foreign.entries = resolve(foreign.entries, variables)
    for word in command.others:
        foreign.notes.append(f"{path.name}:{word.line}: {word.text!r} is no setting")
    return foreign


def _launcher_flags(command: Command, path: Path, foreign: Foreign) -> None:
    """Hydra's own flags and those of launchers, beside `key=value` settings."""
    for flag in command.flags:
        if flag.key in ("config_path", "config_dir"):
            continue
        if flag.key == "config_name" and isinstance(flag.value, str):
            folder = next(
                (str(other.value) for other in command.flags if other.key in ("config_path", "config_dir")), ""
            )
            name = flag.value if flag.value.endswith((".yaml", ".yml")) else f"{flag.value}.yaml"
            found = _near(path, f"{folder}/{name}" if folder else name)
            if found is not None:
                foreign.put(_parse(read_text(found), found).entries)
            elif not flag.value.startswith(("ppo_trainer", "ppo_megatron_trainer", "ppo_base_config")):
                foreign.absent = (*foreign.absent, name)
        else:
            foreign.notes.append(f"{flag.place}: --{flag.key} is the launcher's")
