"""All dialects, and which of them a file is written in.

Invariant: a dialect is recognised by keys that no other has; where that leaves a doubt, the user is asked.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from pentad.config.dialects.areal import AREAL
from pentad.config.dialects.rules import Dialect
from pentad.config.dialects.skyrl import SKYRL
from pentad.config.dialects.trinity import TRINITY
from pentad.config.dialects.trl import TRL
from pentad.config.dialects.verl import VERL
from pentad.config.loading.keys import owner, section_names
from pentad.errors import UserError

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (VERL, AREAL, SKYRL, TRINITY, TRL)}
# Other names of the same language.
ALIASES = {"siirl": "verl", "trinity-rft": "trinity"}


def named(name: str) -> Dialect:
    """The dialect that `--from` names.

    Raises:
        UserError: there is none.
    """
    found = DIALECTS.get(ALIASES.get(name, name))
    if found is None:
        raise UserError(f"there is no dialect {name!r}", f"use one of {', '.join((*DIALECTS, *ALIASES))}")
    return found


def is_own(keys: Iterable[str]) -> bool:
    """Whether a file is one of Pentad's: most of its keys are Pentad's, or some are that no other system has."""
    keys = list(keys)
    ours = [key for key in keys if owner(tuple(key.split("."))) is not None or key in section_names()]
    foreign = [key for key in keys if any(_is_sign(dialect, key) for dialect in DIALECTS.values())]
    return (
        not foreign
        or any(key.partition(".")[0] in ("experiment", "allocation") for key in ours)
        or (len(ours) > len(keys) / 2 and len(foreign) < len(ours))
    )


def recognise(keys: Sequence[str], modules: Sequence[str], where: str) -> Dialect:
    """The dialect of a file by the modules that it runs, or by its keys.

    Raises:
        UserError: none fits, or more than one does.
    """
    for dialect in DIALECTS.values():
        if any(module.startswith(dialect.modules) for module in modules):
            return dialect
    scores = {dialect.name: sum(_is_sign(dialect, key) for key in keys) for dialect in DIALECTS.values()}
    # Trinity-RFT keeps a whole configuration of verl in one of its sections.
    best = max(scores.values())
    if best == 0:
        raise UserError(
            f"{where}: its keys are of no system that can be imported ({', '.join(DIALECTS)})",
            f"say which it is, as in `pentad import {where} --from verl`",
        )
    found = [name for name, score in scores.items() if score == best]
    others = [name for name, score in scores.items() if score and name not in found]
    if len(found) > 1 or any(scores[name] > best / 2 for name in others):
        doubt = " and ".join(DIALECTS[name].title for name in (*found, *others))
        raise UserError(
            f"{where}: it has keys of {doubt}", f"say which it is, as in `pentad import {where} --from {found[0]}`"
        )
    return DIALECTS[found[0]]


def _is_sign(dialect: Dialect, key: str) -> bool:
    return _signs(dialect.name).fullmatch(key) is not None


@cache
def _signs(name: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{sign})" for sign in DIALECTS[name].signs))
