"""`pentad data`: prepare a dataset, or show what a model is given of one."""

import argparse
import json
from pathlib import Path
from typing import Any

from pentad.errors import UserError

DATASETS = {
    "gsm8k": "GSM8K",
    "deepscaler": "DeepScaleR preview",
    "math": "MATH",
    "dapo-math": "DAPO-Math-17k, each problem once",
}
_ROWS = 3


def add_arguments(data: argparse.ArgumentParser, parser_class: type[argparse.ArgumentParser]) -> None:
    """The subcommands of `pentad data`."""
    names = data.add_subparsers(dest="dataset", metavar="DATASET", required=True, parser_class=parser_class)
    for name, title in DATASETS.items():
        dataset = names.add_parser(name, help=f"write {title} as Parquet files", allow_abbrev=False)
        dataset.add_argument("--source", help="file or directory with the raw rows; without it they come from the hub")
        dataset.add_argument("--out", required=True, type=Path, help="directory to write to")
        dataset.add_argument("--limit", type=int, help="keep only the first so many rows of each split")
        dataset.set_defaults(call=prepare)
    shown = names.add_parser("show", help="print rows as the model of a configuration gets them", allow_abbrev=False)
    shown.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    shown.add_argument("overrides", metavar="key=value", nargs="*", help="settings that go over the file")
    shown.add_argument("--rows", type=int, default=_ROWS, help=f"rows of each source (default {_ROWS})")
    shown.set_defaults(call=show)


def prepare(options: argparse.Namespace) -> int:
    """Write a dataset in the form that `data.train` reads."""
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit} keeps nothing", "give 1 or more, or leave it out")
    from pentad.data.recipes import RECIPES

    prepared = RECIPES[options.dataset](options.source, options.out, options.limit)
    print(f"{prepared.train}: {prepared.train_rows} rows\n{prepared.test}: {prepared.test_rows} rows")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print rows of each source: the text after the chat template, special tokens included, and the ground truth."""
    if options.rows < 1:
        raise UserError(f"--rows {options.rows} shows nothing", "give 1 or more, or leave it out")
    from pentad.cli.loading import load_run
    from pentad.data.dataset import load_rows
    from pentad.data.prompts import encode_examples, encode_prompts
    from pentad.run.rendering import example_parts, indented
    from pentad.run.tokenizer import run_tokenizer

    settings = load_run(options.config, options.overrides).settings
    # Rows that are too long are shown, too.
    data = settings.data.model_copy(update={"max_prompt_tokens": 1 << 40, "max_tokens": None})
    examples = settings.algorithm.trains_on == "examples"
    tokenizer = run_tokenizer(settings)
    for number, source in enumerate(data.sources):
        setting = "data.train" if len(data.sources) == 1 else f"data.train[{number}]"
        rows = load_rows(source, data, setting=setting, with_response=examples, limit=options.rows)
        print("\n".join(rows.said or (f"{setting}: {source}",)))
        encoded: Any = (encode_examples if examples else encode_prompts)(rows.rows, tokenizer, data)
        for index, row in enumerate(encoded.rows):
            print(f"\n{row.id}" + (f"  data_source {row.data_source}" if row.data_source else ""))
            parts = example_parts(encoded, index) if examples else iter([("prompt", encoded.tokens[index])])
            for title, tokens in parts:
                text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
                print(f"  {title}, {len(tokens)} tokens:\n{indented(str(text))}")
            length = len(encoded.examples[index][0] if examples else encoded.tokens[index])
            if length > settings.data.max_prompt_tokens:
                limit = settings.data.max_prompt_tokens
                print(f"  longer than data.max_prompt_tokens = {limit}; data.too_long is {data.too_long}")
            if not examples:
                print(f"  ground truth: {_value(row.ground_truth)}")
    return 0


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
