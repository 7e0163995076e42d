"""`pentad reward try`: a configuration's reward on rows of its data, with answers that are given."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pentad.errors import UserError

_ROWS = 8
_SHOWN = 60  # characters of a text in the table
# Keys of an answer in a .jsonl file.
_KEYS = ("response", "answer", "completion", "output")


def add_arguments(reward: argparse.ArgumentParser, parser_class: type[argparse.ArgumentParser]) -> None:
    """The subcommands of `pentad reward`."""
    names = reward.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=parser_class)
    tried = names.add_parser("try", help="score given answers to rows of the data", allow_abbrev=False)
    tried.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    tried.add_argument("overrides", metavar="key=value", nargs="*", help="settings that go over the file")
    tried.add_argument("--rows", type=int, default=_ROWS, help=f"rows of data.train (default {_ROWS})")
    tried.add_argument("--eval", metavar="NAME", help="rows of data.eval.NAME instead")
    tried.add_argument("--answers", metavar="FILE", type=Path, help="one answer a line: text, or .jsonl")
    tried.add_argument("--answer-column", metavar="COLUMN", help="column of the data with the answers")
    tried.set_defaults(call=try_reward)


def try_reward(options: argparse.Namespace) -> int:
    """Score answers and print a table of what came of them; 0 if every call gave a score, else 1."""
    if options.rows < 1:
        raise UserError(f"--rows {options.rows} tries nothing", "give 1 or more, or leave it out")
    from pentad.cli.loading import load_run
    from pentad.loops.scoring import reward_item
    from pentad.rewards.pool import RewardPool

    settings = load_run(options.config, options.overrides).settings
    rows = _rows(settings, options.eval, options.rows)
    print("\n".join(rows.said))
    answers = _answers(rows, options.answers, options.answer_column)
    with RewardPool(settings.reward) as pool:
        for line in pool.said:
            print(line)
        tokens = _tokens(settings, answers) if pool.needs_tokens else [None] * len(answers)
        items = [reward_item(*each) for each in zip(rows.rows[: len(answers)], answers, tokens, strict=True)]
        pool.check(items)
        results = pool.score(items)
        _print_table(items, results)
        for kind, message in pool.first_messages.items():
            print(f"first of {sum(pool.failures.values())} failures ({kind}): {' '.join(message.split())}")
    return int(any(result.failure is not None for result in results))


def _rows(settings: Any, name: str | None, limit: int) -> Any:
    from pentad.data.dataset import load_rows

    data = settings.data
    if name is not None:
        if name not in data.eval:
            known = ", ".join(data.eval) or "none"
            raise UserError(f"--eval {name}: data.eval has no {name}; it has {known}", "name one of them")
        return load_rows(data.eval[name].source, data, role="eval", setting=f"data.eval.{name}", limit=limit)
    setting = "data.train" if len(data.sources) == 1 else "data.train[0]"
    return load_rows(data.sources[0], data, setting=setting, limit=limit)


def _answers(rows: Any, file: Path | None, column: str | None) -> list[str]:
    """An answer to each row, or to the first so many as there are."""
    if (file is None) == (column is None):
        present = [name for name in rows[0].extra if isinstance(rows[0].extra[name], str)]
        known = [name for name in ("response", "answer", "solution", *present) if name in present]
        raise UserError(
            "no answers are given" if file is None else "--answers and --answer-column are both given",
            "give --answers FILE, one answer a line"
            + (f", or --answer-column {known[0]}" if known and file is None else "")
            + ("; keep one of the two" if file is not None else ""),
        )
    if file is not None:
        return _read_answers(file)[: len(rows)]
    from pentad.data.columns import find

    found = [find(row.extra, column or "") for row in rows]
    for row, answer in zip(rows, found, strict=True):
        if not isinstance(answer, str):
            raise UserError(
                f"{row.id}: column {column!r} holds no text; columns: {', '.join(row.extra)}",
                "name a column of texts, or give --answers FILE",
            )
    return found


def _read_answers(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--answers {file} cannot be read: {error}", "check the path") from error
    if file.suffix == ".jsonl":
        lines = [_json_answer(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]
    if not lines:
        raise UserError(f"--answers {file} holds no answers", "write one a line")
    return lines


def _json_answer(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg}", "fix the line, or name the file .txt") from error
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    if not isinstance(value, str):
        raise UserError(f"{place}: no answer", f'write "text", or {{"{_KEYS[0]}": "text"}}')
    return value


def _tokens(settings: Any, answers: Sequence[str]) -> list[list[int]]:
    from pentad.run.tokenizer import run_tokenizer

    tokenizer = run_tokenizer(settings)
    return [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]


def _print_table(items: Sequence[Any], results: Sequence[Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    parts = list(dict.fromkeys(name for r in results for name in (*r.components, *r.metrics)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("row", "prompt", "answer", "ground truth"):
        table.add_column(heading, overflow="ellipsis" if heading == "row" else "fold")
    for heading in (*parts, "reward", "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item, result in zip(items, results, strict=True):
        known = {**result.metrics, **result.components}
        texts = [item.id, item.prompt, item.response, "" if item.ground_truth is None else str(item.ground_truth)]
        numbers = [f"{known[name]:.3g}" if name in known else "-" for name in parts]
        score = f"{result.score:.4g}" if result.failure is None else result.failure
        cells = [*map(_start, texts), *numbers, score, f"{1000 * result.seconds:.1f}"]
        table.add_row(*map(Text, cells))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _start(text: str) -> str:
    """The start of a text on one line; of a long one, its end, too, where answers often stand."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN // 2]} ... {line[-_SHOWN // 2 :]}"
