"""Unknown keys: found in a configuration, taken out of it, and each reported with the nearest valid key."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from pentad.config.dialects.foreign import translate
from pentad.config.loading.keys import known_keys, owner, section_names
from pentad.config.loading.yaml_io import KeyPath
from pentad.errors import UserError


def take_unknown(values: dict[str, Any], place: Callable[[KeyPath], str]) -> list[UserError]:
    """Remove every unknown key from `values`, in place, and return one problem for each."""
    problems = []
    for path in list(_unknown(values, ())):
        name = ".".join(path)
        problems.append(UserError(f"{name} ({place(path)}): unknown key", suggestion(name)))
    _prune(values, ())
    return problems


def suggestion(name: str) -> str:
    """What to write instead of the unknown key `name`."""
    if found := translate(name):
        if not found.key:
            return found.note
        return f"here it is {found.key}" + (f" ({found.note})" if found.note else "")
    near = nearest(name)
    return f"did you mean {' or '.join(near)}?" if near else "remove it; `pentad config --keys` lists every key"


def nearest(name: str) -> list[str]:
    """The valid keys nearest to `name`, best first, at most three; they may lie in other sections."""
    leaf = name.rpartition(".")[2]

    def score(key: str) -> float:
        alike = difflib.SequenceMatcher(None, name, key).ratio()
        leaf_alike = difflib.SequenceMatcher(None, leaf, key.rpartition(".")[2]).ratio()
        # The last word says most: `trainer.lr` is meant to be `trainer.optimizer.lr`, not `trainer.logger`.
        return 0.3 * alike + 0.7 * leaf_alike

    # The critic has an optimizer and a schedule as the trainer has; who means the critic's says so.
    candidates = [key for key in known_keys() if "critic" in name or not _is_twin(key)]
    ranked = sorted(((score(key), key) for key in candidates), reverse=True)
    best = ranked[0][0]
    if best < 0.6:
        return []
    return [key for value, key in ranked[:3] if value > best - 0.05]


def _is_twin(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section == "critic" and f"trainer.{rest}" in known_keys()


def _unknown(values: dict[str, Any], prefix: KeyPath) -> Iterator[KeyPath]:
    for name, value in values.items():
        path = (*prefix, name)
        if _is_valid(path):
            if isinstance(value, dict) and ".".join(path) in section_names():
                yield from _unknown(value, path)
        elif isinstance(value, dict) and value:
            # Report what is set, not the section around it: `optimizer: {lr: 1}` means trainer.optimizer.lr.
            yield from _leaves(value, path)
        else:
            yield path


def _leaves(values: dict[str, Any], prefix: KeyPath) -> Iterator[KeyPath]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name)


def _is_valid(path: KeyPath) -> bool:
    return ".".join(path) in section_names() or owner(path) is not None


def _prune(values: dict[str, Any], prefix: KeyPath) -> None:
    for name in list(values):
        path = (*prefix, name)
        if not _is_valid(path):
            del values[name]
        elif isinstance(values[name], dict) and ".".join(path) in section_names():
            _prune(values[name], path)
