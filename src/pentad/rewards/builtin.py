"""The rewards that come with Pentad.

Invariant: each is a plain function of the prompt, the response and what the data says, and gives 1.0 or 0.0
(`reasoning_gym`: 0 to 1, as the task scores it; `length`: -1 to 0; `http`: as the server says). A response that cannot
be read scores 0; a ground truth that cannot be read raises ValueError. Heavy libraries are imported by the first call
(`warm_up`), in a worker process.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pentad.errors import UserError
from pentad.rewards.http import http

# A sign, a currency sign, digits with or without thousands separators, decimals; and nothing after it that would
# make it another number (1,2 or 1/2 or 1.2.3).
_NUMBER = re.compile(
    r"\s*(?P<sign>[-+\u2212])?\s*(?:\\?\$)?\s*(?P<sign2>[-\u2212])?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?![,./]?\d)"
)
REASONED = r"<think>.*</think>\s*<answer>.*</answer>"
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def gsm8k(prompt: str, response: str, ground_truth: Any, **extra: Any) -> float:
    """1.0 if the number right after the last `####` of the response equals the ground truth.

    `$`, thousands separators and trailing zeros do not matter; text after the number does not either. The ground
    truth may be a number or a whole GSM8K solution with its `#### number`.
    """
    truth = _number(truth_text(ground_truth).rpartition("####")[2])
    if truth is None:
        raise ValueError(f"the ground truth {ground_truth!r} is not a number")
    _, mark, answer = response.rpartition("####")
    return float(bool(mark) and _number(answer) == truth)


def exact(prompt: str, response: str, ground_truth: Any, **extra: Any) -> float:
    """1.0 if the response equals the ground truth, white space around either aside."""
    return float(response.strip() == truth_text(ground_truth).strip())


def math(prompt: str, response: str, ground_truth: Any, **extra: Any) -> float:
    r"""1.0 if math-verify finds the answer of the response (`\boxed{}` first) equal to the ground truth.

    Works in the main thread of a process only: math-verify limits its own time by SIGALRM.
    """
    from math_verify import parse, verify

    text = truth_text(ground_truth)
    gold = parse(text if "\\boxed" in text or "$" in text else f"\\boxed{{{text}}}")
    if not gold:
        raise ValueError(f"the ground truth {ground_truth!r} cannot be read as mathematics")
    return float(verify(gold, parse(response)))


def reasoning_gym(
    prompt: str, response: str, ground_truth: Any, *, task: str, config: Mapping[str, Any], entry: dict, **extra: Any
) -> float:
    """The score (0 to 1) that the reasoning_gym task itself gives to the answer of the response.

    The answer is the text of the last `<answer>...</answer>`; without one, the text after the last `####`; without
    that, the last line that is not blank.

    Args:
        task: name of the task.
        config: its options.
        entry: the problem, as the task generated it.
    """
    dataset = _reasoning_gym_dataset(task, json.dumps(dict(config), sort_keys=True))
    return float(dataset.score_answer(_answer(response), entry))


def format(response: str, *, pattern: str = REASONED) -> float:
    """1.0 if the whole response, white space around it aside, matches a regular expression.

    Args:
        pattern: of Python's `re`; `.` matches line ends. By default `<think>...</think><answer>...</answer>`.
    """
    return float(re.fullmatch(pattern, response.strip(), re.DOTALL) is not None)


def length(response: str, *, limit: int, buffer: int = 0, response_ids: Sequence[int] | None = None) -> float:
    """Soft penalty of long responses (DAPO, https://arxiv.org/abs/2503.14476, equation 13).

    0.0 up to `limit - buffer` tokens, then falling by a straight line to -1.0 at `limit`; -1.0 above it.

    Args:
        limit: tokens.
        buffer: tokens over which the penalty rises.

    Raises:
        ValueError: the tokens of the response are not known, or the numbers do not fit each other.
    """
    if response_ids is None:
        raise ValueError("the tokens of the response are not known here")
    if limit < 1 or not 0 <= buffer <= limit:
        raise ValueError(f"limit={limit} and buffer={buffer} must be 0 <= buffer <= limit, 1 <= limit")
    over = len(response_ids) - (limit - buffer)
    if over <= 0:
        return 0.0
    return -1.0 if over > buffer else -over / buffer


BUILTIN: Mapping[str, Callable[..., Any]] = {
    "gsm8k": gsm8k,
    "math": math,
    "exact": exact,
    "reasoning_gym": reasoning_gym,
    "format": format,
    "length": length,
    "http": http,
}

# Those that compare with the text of the ground truth.
TEXT_REWARDS = frozenset({"gsm8k", "math", "exact"})
# Those that need a ground truth.
TRUTH_REWARDS = TEXT_REWARDS | {"reasoning_gym"}


def truth_text(ground_truth: Any) -> str:
    """The text that a response is compared with.

    A column of whole numbers of which some were missing is one of floats in Parquet; its 1234.0 is meant as 1234.
    """
    if isinstance(ground_truth, float) and ground_truth.is_integer():
        return str(int(ground_truth))
    return str(ground_truth)


def warm_up(name: str) -> None:
    """Import what the built-in reward `name` needs, so that its first call is as fast as the others."""
    if name == "math":
        import math_verify  # noqa: F401
    elif name == "reasoning_gym":
        import reasoning_gym as _library  # noqa: F401


def resolve_name(name: str, data_source: str) -> str:
    """The reward of a row: `name` itself, or for `auto` the built-in that belongs to `data_source`.

    Raises:
        UserError: `name` is auto and no built-in reward belongs to `data_source`.
    """
    if name != "auto":
        return name
    lowered = data_source.lower()
    if lowered.startswith("reasoning_gym"):
        return "reasoning_gym"
    if lowered.rpartition("/")[2] == "gsm8k":
        return "gsm8k"
    if (
        "deepscaler" in lowered
        or "dapo" in lowered
        or lowered.rpartition("/")[2] in ("math", "math-lighteval", "math-500")
    ):
        return "math"
    found = f"data_source {data_source!r}" if data_source else "rows without data_source"
    raise UserError(
        f"reward.name=auto knows no reward for {found}", f"set reward.name to {', '.join(BUILTIN)} or module:function"
    )


def _number(text: str) -> Decimal | None:
    """The number that `text` begins with."""
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = Decimal(match["digits"].replace(",", ""))
    negative = (match["sign"] or "+") != "+" or match["sign2"] is not None
    return -value if negative else value


def _answer(response: str) -> str:
    tagged = _ANSWER_TAG.findall(response)
    if tagged:
        return tagged[-1].strip()
    _, mark, after = response.rpartition("####")
    if mark:
        return after.strip()
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@functools.lru_cache(maxsize=64)
def _reasoning_gym_dataset(task: str, config: str) -> Any:
    from reasoning_gym.factory import create_dataset

    return create_dataset(task, **json.loads(config), size=1)
