"""Loading a run's settings: a YAML file, then overrides, then checks.

Invariant: what is returned is complete and checked, and the origin of every value is known. All problems that can
be found are reported together, in one `UserError`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pentad.config.loading.checks import check
from pentad.config.loading.faults import describe
from pentad.config.loading.interpolate import resolve
from pentad.config.loading.keys import known_keys
from pentad.config.loading.megatron import complete, describe_added
from pentad.config.loading.overrides import apply_overrides
from pentad.config.loading.unknown import take_unknown
from pentad.config.loading.yaml_io import Document, KeyPath, read_file
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError

DEFAULT = "default"

type Check = Callable[[RunSettings], Iterable[UserError]]


@dataclass(frozen=True)
class LoadedSettings:
    """Settings and where each came from.

    Attributes:
        settings: checked and complete.
        origins: dotted key -> `default`, `FILE.yaml:LINE` or `command line`. Keys of free mappings (`data.eval.gsm8k`)
            have entries of their own.
        path: the configuration file.
        overrides: the overrides as they were given.
        notices: what was assumed, in sentences that the user is to see.
    """

    settings: RunSettings
    origins: Mapping[str, str]
    path: Path
    overrides: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def load_settings(
    path: str | Path,
    overrides: Sequence[str] = (),
    checks: Iterable[Check] = (),
    document: Document | None = None,
) -> LoadedSettings:
    """Read a configuration file, apply overrides, and check the result.

    Args:
        path: a YAML file.
        overrides: `section.key=value` texts; values are YAML.
        checks: further rules, for what this package does not know (allocations); they are run once the settings
            are well-formed, and what they return is reported with the rest.
        document: what stands in the file, if it was read already (a file of another system).

    Raises:
        UserError: with everything that is wrong.
    """
    path = Path(path)
    document = document or read_file(path)
    values, problems = document.values, list(document.problems)
    origins: dict[KeyPath, str] = {key: f"{path.name}:{line}" for key, line in document.lines.items()}
    origins |= document.origins

    def place(key: Sequence[Any]) -> str:
        for end in range(len(key), 0, -1):
            if origin := origins.get(tuple(key[:end])):
                return origin
        return DEFAULT

    problems += apply_overrides(values, origins, overrides)
    problems += resolve(values, place)
    problems += take_unknown(values, place)
    added = complete(values)
    origins |= dict.fromkeys(added, "assumed for recompute_granularity=full")
    for section in _required_sections():
        values.setdefault(section, {})
    try:
        settings = RunSettings.model_validate(values)
    except ValidationError as error:
        problems += describe(error, place)
    else:
        named = _named_origins(values, origins)
        problems += check(settings, named)
        for rule in checks:
            problems += rule(settings)
        if not problems:
            notices = tuple(filter(None, [*document.notices, describe_added(added)]))
            return LoadedSettings(settings, named, path, tuple(overrides), notices)
    raise join(problems, str(path))


def join(problems: Sequence[UserError], where: str) -> UserError:
    """One error for one or more problems."""
    if len(problems) == 1:
        return problems[0]
    lines = [f"{where}: {len(problems)} problems"]
    for number, problem in enumerate(problems, start=1):
        lines.append(f"{number:3}. " + problem.cause.replace("\n", "\n     "))
        if problem.fix:
            lines.append("     fix: " + problem.fix.replace("\n", "\n     "))
    return UserError("\n".join(lines), "put each of them right as said above")


def _required_sections() -> set[str]:
    """Sections with a required key: made present, so that the missing key is reported and not its section."""
    return {key.name.partition(".")[0] for key in known_keys().values() if key.required}


def _named_origins(values: dict[str, Any], origins: Mapping[KeyPath, str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for key in known_keys().values():
        path = tuple(key.name.split("."))
        named[key.name] = origins.get(path, DEFAULT)
        if key.free:
            inside = [(inner, origin) for inner, origin in origins.items() if inner[: len(path)] == path != inner]
            named |= {".".join(inner): origin for inner, origin in inside if len(inner) == len(path) + 1}
    return named
