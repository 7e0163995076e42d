"""Classes and functions of the user's, named `package.module:name` or `path/to/file.py:name`.

Invariant: whatever importing the user's code does, the answer is the object or a `UserError` that names the setting.
"""

import difflib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pentad.errors import UserError


def load_object(name: str, setting: str, directory: Path | None = None) -> Any:
    """Import what `name` names.

    Args:
        name: `package.module:name` or `path/to/file.py:name`.
        setting: that gives the name, for errors.
        directory: where modules are looked for first, and what paths are relative to; by default the working directory.

    Raises:
        UserError: there is no such module or name, or importing it failed.
    """
    directory = directory or Path.cwd()
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        raise UserError(f"{setting}={name} is not of the form module:name", f"write {setting}=MODULE:NAME")
    module = _import(name, setting, module_name, directory)
    if not hasattr(module, attribute):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        nearest = difflib.get_close_matches(attribute, own, 1) or own[:3]
        raise UserError(
            f"{setting}={name}: {getattr(module, '__file__', module_name)} has no {attribute!r}",
            f"set {setting}={module_name}:{nearest[0]}" if nearest else f"define {attribute}",
        )
    return getattr(module, attribute)


def _import(name: str, setting: str, module_name: str, directory: Path) -> ModuleType:
    path = directory / module_name
    try:
        if module_name.endswith(".py"):
            if not path.is_file():
                raise UserError(f"{setting}={name}: there is no file {path}", _nearby(directory, path.stem))
            return _import_file(path.resolve())
        if str(directory) not in sys.path:
            sys.path.insert(0, str(directory))
        return importlib.import_module(module_name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise UserError(
                f"{setting}={name}: there is no module {module_name!r} in {directory} or installed",
                _nearby(directory, module_name.rpartition(".")[2]),
            ) from error
        raise UserError(f"{setting}={name}: importing it failed: {error}", f"install {error.name}") from error
    except BaseException as error:  # whatever the user's module does at import, SystemExit included
        raise UserError(
            f"{setting}={name}: importing it failed: {type(error).__name__}: {error}{where(error)}", "fix the module"
        ) from error


def _import_file(path: Path) -> ModuleType:
    """One module a file, so that a class is the same class however often it is asked for."""
    # A name of its own: `random.py` of the user's must not take the place of the standard library's.
    name = f"pentad_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    if (known := sys.modules.get(name)) is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as `import` does; dataclasses and pickle look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _nearby(directory: Path, stem: str) -> str:
    stems = [path.stem for path in directory.glob("*.py")]
    nearest = difflib.get_close_matches(stem, stems, 1)
    return f"did you mean {nearest[0]}?" if nearest else f"put {stem}.py into {directory}, or install the module"


def where(error: BaseException) -> str:
    """` (file:line)` where `error` was raised, as far as it is known."""
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f" ({traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno})"
