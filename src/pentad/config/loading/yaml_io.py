"""Reading and writing YAML: every value keeps the line it came from, and no key may be given twice.

Plain words are read by the core schema of YAML 1.2, not 1.1: `1e-6` is a number, `no` and `on` are text, and
`2024-01-01` and `1:30` are text too. What is written is read back as the same value.
"""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml import MarkedYAMLError

from pentad.errors import UserError

type KeyPath = tuple[str, ...]

_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)

_DEEPEST = 50
_TOO_DEEP = f"values are nested more than {_DEEPEST} deep"
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class CoreLoader(yaml.SafeLoader):
    """A safe loader that resolves plain scalars by the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name and shape)


class CoreDumper(yaml.SafeDumper):
    """The matching dumper: quotes exactly the text that `CoreLoader` would not read as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Write a repeated value twice: anchors would make a file harder to read."""
        return True


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (CoreLoader, CoreDumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


@dataclass
class Document:
    """A YAML mapping and where each of its values stands.

    Attributes:
        values: nested dictionaries with text keys.
        lines: key path -> line, counted from 1. A value inside a list has the line of the list's key.
        problems: keys given twice, keys that are not text.
        origins: of a document that was not read from YAML, where a value comes from, in words.
        notices: what was assumed, in sentences that the user is to see.
    """

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[UserError] = field(default_factory=list)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def read_file(path: Path) -> Document:
    """Read a configuration file.

    Raises:
        UserError: no such file, not readable, not YAML, empty, or its top level is not a mapping.
    """
    return read_document(read_text(path), path)


def read_document(text: str, path: Path) -> Document:
    """Read the text of a configuration file; `path` names it in messages.

    Raises:
        UserError: not YAML, empty, or its top level is not a mapping.
    """
    loader = CoreLoader(text)
    try:
        node = _compose(loader)
        if node is None:
            raise UserError(f"{path} is empty", "write at least experiment.name, model.path, data.train, ...")
        if not isinstance(node, yaml.MappingNode):
            raise UserError(
                f"{path}:{node.start_mark.line + 1}: the top level is {_kind(node)}, not a mapping",
                "write `section:` lines with indented `key: value` lines below",
            )
        document = Document()
        document.values = _mapping(loader, node, (), document, path.name, ())
        return document
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from error
    finally:
        loader.dispose()


def read_value(text: str) -> Any:
    """Read the value of a command-line override. Unquoted text is taken as it stands, `#` and all.

    Raises:
        yaml.YAMLError: not a YAML value.
        ValueError: a part of the text would be lost as a comment, or a key is given twice.
    """
    loader = CoreLoader(text)
    try:
        node = _compose(loader)
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag.endswith(":str"):
            return text.strip()
        if node is None or text[node.end_mark.index :].strip():
            raise ValueError("a part of the value would be lost as a comment")
        document = Document()
        value = _value(loader, node, (), document, "command line", ())
        if document.problems:
            raise ValueError(document.problems[0].cause)
        return value
    finally:
        loader.dispose()


def read_word(text: str) -> Any:
    """What an unquoted word means in YAML: a number, true, false, null, or itself."""
    loader = CoreLoader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        return loader.construct_object(yaml.ScalarNode(tag, text))
    finally:
        loader.dispose()


def write_value(value: Any) -> str:
    """One value as YAML on one line."""
    text = yaml.dump(value, Dumper=CoreDumper, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _compose(loader: CoreLoader) -> yaml.Node | None:
    try:
        return loader.get_single_node()
    except RecursionError:
        raise MarkedYAMLError(None, None, _TOO_DEEP, loader.get_mark()) from None


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: no such file, not readable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent
        names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")) if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4) or names[:3]
        fix = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "give an existing file"
        raise UserError(f"{path}: no such file", fix) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory", "give the YAML file inside it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", "give a YAML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from None


def _not_yaml(path: Path, error: yaml.YAMLError) -> UserError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    hint = "indent with spaces, not tabs" if "\\t" in what else "check quotes, colons and indentation there"
    return UserError(f"{where}: not valid YAML: {what}", hint)


def _value(
    loader: CoreLoader, node: yaml.Node, path: KeyPath, document: Document, file: str, above: tuple[yaml.Node, ...]
) -> Any:
    if len(above) >= _DEEPEST:
        raise MarkedYAMLError(None, None, _TOO_DEEP, node.start_mark)
    if node in above:
        raise MarkedYAMLError(None, None, "an alias refers to itself", node.start_mark)
    if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
        raise MarkedYAMLError(None, None, f"the tag {node.tag} is not known here", node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, document, file, above)
    if isinstance(node, yaml.SequenceNode):
        # Items have no paths of their own: nothing but whole lists can be set.
        inner = Document()
        items = [_value(loader, item, path, inner, file, (*above, node)) for item in node.value]
        document.problems += inner.problems
        return items
    return loader.construct_object(node)


def _mapping(
    loader: CoreLoader,
    node: yaml.MappingNode,
    path: KeyPath,
    document: Document,
    file: str,
    above: tuple[yaml.Node, ...],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if not isinstance(key, str):
            where = f"{'.'.join(path)} ({file}:{line})" if path else f"{file}:{line}"
            document.problems.append(UserError(f"{where}: the key {key!r} is not text", f"write '{key}' in quotes"))
            continue
        here = (*path, key)
        if key in values:
            cause = f"{'.'.join(here)} ({file}:{line}) is given twice; the first is on line {first[key]}"
            document.problems.append(UserError(cause, "keep one of the two"))
            continue
        first[key] = document.lines[here] = line
        values[key] = _value(loader, value_node, here, document, file, (*above, node))
    return values


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
