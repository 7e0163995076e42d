"""Keyword arguments of TRL's classes in a Python script, read from its syntax tree. The script is never run.

Invariant: a value that is not written out as a constant, or as a name that is bound once to one, is given as text and
named in `Entry.unresolved`.
"""

import ast
from collections import Counter
from pathlib import Path
from typing import Any

from pentad.config.dialects.entries import Entry, Foreign
from pentad.errors import UserError

_CLASSES = ("GRPOConfig", "LoraConfig", "GRPOTrainer")


def read_python(text: str, path: Path) -> Foreign:
    """The entries of a script that calls TRL.

    Raises:
        UserError: it is not Python.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise UserError(f"{path}{f':{line}' if line else ''}: not valid Python", "give a script that runs") from None
    bound, functions = _bound_names(tree), {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    imported = _imports(tree)
    foreign = Foreign(modules=("trl",) if any(name.startswith("trl") for name in imported.values()) else ())
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in _CLASSES:
            continue
        for keyword in node.keywords:
            place = f"{path.name}:{keyword.value.lineno}"
            if keyword.arg is None:
                foreign.notes.append(f"{place}: **{ast.unparse(keyword.value)} is not read")
                continue
            key = keyword.arg if name == "GRPOConfig" else f"{name}.{keyword.arg}"
            foreign.put(_entries(key, keyword.value, place, bound, functions, imported))
    return foreign


def _entries(
    key: str, node: ast.expr, place: str, bound: dict[str, ast.expr], functions: set[str], imported: dict[str, str]
) -> list[Entry]:
    known = _follow(node, bound)
    if isinstance(known, ast.Call) and getattr(known.func, "id", getattr(known.func, "attr", "")) == "load_dataset":
        found = [Entry(f"{key}.{part}", _constant(value, bound), place) for part, value in _of_dataset(known)]
        return [entry for entry in found if entry.value is not None]
    if key.endswith("reward_funcs"):
        items = known.elts if isinstance(known, ast.List | ast.Tuple) else [known]
        names = [_reward(item, functions, imported) for item in items]
        return [Entry(key, names, place)]
    if key.endswith((".args", ".processing_class", ".tokenizer", ".peft_config")):
        return [Entry(key, ast.unparse(node), place)]
    try:
        return [Entry(key, _literal(known, bound), place)]
    except ValueError:
        source = ast.unparse(node)
        return [Entry(key, source, place, (source,))]


def _of_dataset(call: ast.Call) -> list[tuple[str, ast.expr]]:
    return [*zip(("path", "name"), call.args, strict=False), *((k.arg, k.value) for k in call.keywords if k.arg)]


def _reward(node: ast.expr, functions: set[str], imported: dict[str, str]) -> str:
    name = ast.unparse(node)
    if name in functions or name not in imported:
        return name
    return imported[name]


def _bound_names(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that are assigned exactly once in the whole script."""
    found: dict[str, ast.expr] = {}
    times: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            times[node.id] += 1
    return {name: value for name, value in found.items() if times[name] == 1}


def _imports(tree: ast.Module) -> dict[str, str]:
    """Imported names -> `module:name`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}:{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: alias.name for alias in node.names}
    return found


def _follow(node: ast.expr, bound: dict[str, ast.expr]) -> ast.expr:
    for _ in range(10):
        if not (isinstance(node, ast.Name) and node.id in bound):
            break
        node = bound[node.id]
    return node


def _constant(node: ast.expr, bound: dict[str, ast.expr]) -> Any:
    try:
        return _literal(_follow(node, bound), bound)
    except ValueError:
        return None


def _literal(node: ast.expr, bound: dict[str, ast.expr]) -> Any:
    node = _follow(node, bound)
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item, bound) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(ast.unparse(node)) from None
