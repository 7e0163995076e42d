"""The end of an import: settings that the run would not read are left out, and what is still needed is named."""

from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from pentad.config.dialects.facts import Sheet
from pentad.config.dialects.rules import CREDIT, CRITIC
from pentad.config.loading.keys import known_keys, owner
from pentad.config.loading.show import plain
from pentad.config.loading.unread import unread_keys
from pentad.config.schema.algorithms import ALGORITHMS
from pentad.config.schema.run import RunSettings

# Stand in for what is missing, so that the rest can be checked.
_STANDINS = {"experiment.name": "x", "model.path": "x", "data.train": "x", "trainer.total_steps": 10**9}


def finish(sheet: Sheet, given: Collection[str]) -> None:
    """Leave out what nothing would read, name what is missing, and sort the settings.

    Args:
        given: settings that the user gives besides.
    """
    _without_evaluation(sheet, given)
    _of_other_algorithms(sheet)
    _of_critics(sheet)
    for _ in range(3):  # what is left out may be what another setting needs
        if not _unread(sheet):
            break
    _redundant_defaults(sheet)
    for key in known_keys().values():
        if key.required and key.name not in sheet.values:
            sheet.missing.setdefault(key.name, "the file does not say")
    sheet.missing = {name: why for name, why in sheet.missing.items() if name not in {*given, *sheet.values}}
    order = {name: number for number, name in enumerate(known_keys())}
    ranked = sorted(sheet.values.items(), key=lambda item: order[getattr(owner(tuple(item[0].split("."))), "name", "")])
    sheet.values = dict(ranked)
    for row in sheet.rows:
        if row.verdict is None:
            row.verdict, row.why = "in doubt", "nothing was made of it"


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted names as nested mappings."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split(".")
        inner = tree
        for section in above:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return tree


def _drop(sheet: Sheet, key: str, why: str) -> None:
    sheet.values.pop(key, None)
    for row in sheet.rows:
        if row.verdict == "taken" and row.key == key:
            row.verdict, row.key, row.value, row.why = "no meaning here", "", None, why


def _without_evaluation(sheet: Sheet, given: Collection[str]) -> None:
    if "data.eval" in sheet.values or any(name.startswith("data.eval") for name in given):
        return
    for key in ("trainer.test_freq", "trainer.val_before_train"):
        if key in sheet.values:
            _drop(sheet, key, "nothing is evaluated: there is no data.eval")


def _of_other_algorithms(sheet: Sheet) -> None:
    name = sheet.values.get("algorithm.name", "grpo")
    fields = ALGORITHMS[name].model_fields
    for key in [key for key in sheet.values if key.startswith("algorithm.")]:
        if key.split(".")[1] in fields:
            continue
        value = sheet.values.pop(key)
        for row in sheet.rows:
            if row.verdict == "taken" and row.key == key:
                same = known_keys()[key].default == value
                row.verdict = "no meaning here" if same else "not supported here"
                row.why, row.learns, row.key, row.value = f"the algorithm {name} has no {key}", not same, "", None


def _of_critics(sheet: Sheet) -> None:
    """Keys of a critic are without meaning only where there is none."""
    name = sheet.values.get("algorithm.name", "grpo")
    if "critic" not in ALGORITHMS[name].model_validate({"name": name}).roles:
        return
    for row in sheet.rows:
        if row.verdict == "no meaning here" and row.why in (CRITIC, CREDIT):
            row.verdict, row.learns = "not supported here", True
            row.why = f"a setting of critics that has no counterpart here: see critic.* and algorithm.* of {name}"


def _unread(sheet: Sheet) -> bool:
    """Leave out settings that this run would not read; whether there were any."""
    tree = nested({**_STANDINS, **sheet.values})
    try:
        settings = RunSettings.model_validate(tree)
    except ValidationError:
        return False  # the loader will say what is wrong, with its place
    found = False
    for key, (why, _) in unread_keys(settings).items():
        for name in [name for name in sheet.values if name == key or name.startswith(key + ".")]:
            _drop(sheet, name, why)
            found = True
    return found


def _redundant_defaults(sheet: Sheet) -> None:
    """Defaults of theirs that are ours too need no line."""
    by_default = {row.key for row in sheet.rows if row.entry.default and row.verdict == "taken"}
    by_file = {row.key for row in sheet.rows if not row.entry.default and row.verdict == "taken"}
    for key in by_default - by_file:
        known = known_keys().get(key)
        if known is not None and not known.required and plain(_default(sheet, key)) == plain(sheet.values.get(key)):
            sheet.values.pop(key, None)
            for row in sheet.rows:
                if row.key == key and row.entry.default:
                    row.verdict = "no meaning here"


def _default(sheet: Sheet, key: str) -> Any:
    """The default of a setting, which is the algorithm's own where it has one."""
    fields = ALGORITHMS[sheet.values.get("algorithm.name", "grpo")].model_fields
    name = key.removeprefix("algorithm.")
    if key.startswith("algorithm.") and name in fields and name != "name":
        return fields[name].get_default(call_default_factory=True)
    return known_keys()[key].default
