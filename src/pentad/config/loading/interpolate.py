"""`${section.key}` in values, resolved by OmegaConf against the file and the overrides.

OmegaConf is imported only when a value asks for it: it takes longer to import than everything else here.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pentad.config.loading.yaml_io import KeyPath
from pentad.errors import UserError


def resolve(values: dict[str, Any], place: Callable[[KeyPath], str]) -> list[UserError]:
    """Replace interpolations in `values` in place; return those that cannot be resolved.

    Args:
        values: nested dictionaries.
        place: says where the value of a key path was given.
    """
    wanted = [(path, slot, index) for path, slot, index in _slots(values, ()) if "${" in str(slot[index])]
    if not wanted:
        return []
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = OmegaConf.create(values)
    problems: list[UserError] = []
    resolved: list[tuple[Any, Any, Any]] = []
    for path, slot, index in wanted:
        node: Any = tree
        try:
            for part in path:
                node = node[part]
            value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
            resolved.append((slot, index, value))
        except OmegaConfBaseException as error:
            name = ".".join(map(str, path))
            what = str(error).partition("\n")[0]
            problems.append(
                UserError(
                    f"{name} ({place(path)}): {slot[index]!r} cannot be resolved: {what}",
                    "name a key that the file or an override gives, as ${section.key}; write \\${ for a plain ${",
                )
            )
    for slot, index, value in resolved:
        slot[index] = value
    return problems


def escape(value: Any) -> Any:
    """The value written so that `resolve` gives it back."""
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, dict):
        return {key: escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escape(inner) for inner in value]
    return value


def _slots(container: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for index, value in items:
        if isinstance(value, dict | list):
            yield from _slots(value, (*path, index))
        elif isinstance(value, str):
            yield (*path, index), container, index
