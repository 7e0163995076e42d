"""A reward for a first configuration: a built-in one where the data says which, else a file to be filled.

Invariant: a built-in reward is chosen only where it can read the ground truth of every row.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pentad.config.schema.data import DataSettings
from pentad.data.rows import PromptRow, Rows
from pentad.errors import UserError
from pentad.rewards.builtin import resolve_name, truth_text

# With leading zeros, digits are a code and no number.
_NUMBER = re.compile(r"\s*[-+]?\$?\s*(?:[1-9]\d{0,2}(?:,\d{3})+|0|[1-9]\d*)?(?:\.\d+)?\s*")
_SHOWN = 70


@dataclass(frozen=True)
class Choice:
    """A reward.

    Attributes:
        name: for `reward.name`.
        why: it was chosen.
        file: to be written and filled by the user; None for a built-in reward.
        text: of the file.
    """

    name: str
    why: str
    file: Path | None = None
    text: str = ""


def choose_reward(rows: Rows, out: Path, data: DataSettings) -> Choice:
    """The reward of a dataset.

    Args:
        out: where the configuration will stand; a file of the user's own stands beside it.
    """
    try:
        known = {resolve_name("auto", row.data_source) for row in rows}
        return Choice("auto", f"data_source belongs to {' and '.join(sorted(known))}")
    except UserError:
        pass
    truths = ["" if row.ground_truth is None else truth_text(row.ground_truth) for row in rows]
    if all(map(_is_number, truths)):
        return Choice("math", "every ground truth is a number")
    if all(mark and _is_number(number) for _, mark, number in (truth.rpartition("####") for truth in truths)):
        return Choice("gsm8k", "every ground truth ends with #### and a number, as a response must")
    what = "ground truths are not numbers" if any(truths) else "the data has no ground truth"
    file = out.with_name(f"{out.stem}_reward.py")
    return Choice(f"{file}:score", f"{what}: write in {file} what a response is worth", file, _stub(rows[0], out, file))


def _is_number(text: str) -> bool:
    return any(letter.isdigit() for letter in text) and _NUMBER.fullmatch(text) is not None


def _stub(row: PromptRow, out: Path, file: Path) -> str:
    given = "prompt, response" + ("" if row.ground_truth is None else ", ground_truth")
    names = [name for name in row.extra if name.isidentifier() and name not in ("prompt", "response", "ground_truth")]
    shown = {"ground_truth": row.ground_truth} if row.ground_truth is not None else {}
    lines = [
        f"    #   {name} = {_short(value)}" for name, value in {**shown, **{n: row.extra[n] for n in names}}.items()
    ]
    return f'''"""The reward of {out.name}: what a response is worth.

`pentad reward try {out} --answers FILE` shows it on rows of the data, with one answer a line.
"""


def score({given}, **columns):
    """A number for one response; higher is better. The other columns of the row are in `columns`, or may be parameters
    of their names."""
    # Of the first row, {row.id}:
{chr(10).join(lines) or "    #   no other columns"}
    raise NotImplementedError("write in {file} what a response is worth")
'''


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
