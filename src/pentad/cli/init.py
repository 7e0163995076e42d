"""`pentad init`: a first configuration for one's own model and data.

Invariant: no file is replaced, and nothing is written unless all of it can be.
"""

import argparse
from pathlib import Path

from pentad.errors import UserError

EXAMPLES = """\
examples:
  pentad init Qwen/Qwen3-0.6B data/train.jsonl
  pentad init Qwen/Qwen3-8B hf:openai/gsm8k:main --eval hf:openai/gsm8k:main:test data.prompt_column=question
  pentad init models/mine gsm8k --out gsm8k.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", metavar="MODEL", help="a directory, a .gguf file, or a hub id")
    parser.add_argument("data", metavar="DATA", help="a file or directory, hf:NAME, reasoning_gym:TASK, or gsm8k, ...")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that are not to be chosen")
    parser.add_argument("--eval", metavar="SOURCE", help="rows that are evaluated on")
    parser.add_argument("--source", metavar="PLACE", help="raw rows of gsm8k, deepscaler, math or dapo-math")
    parser.add_argument("--out", type=Path, default=Path("run.yaml"), help="file to write (default run.yaml)")
    parser.add_argument("--gpus", type=int, help="GPUs to plan for (default: those that are here; 0: the CPU)")
    parser.add_argument("--gpu", help="their kind, with --gpus: a100, h100, h200, b200")


def init(options: argparse.Namespace) -> int:
    """Write a configuration and say how to go on."""
    out: Path = options.out
    _check_free(out)
    gpus = _gpus(options.gpus, options.gpu)
    train, evaluation = _sources(options)
    from pentad.run.first_config import first_config

    first = first_config(out, options.model, train, evaluation, gpus, options.overrides)
    files = {out: first.text}
    if first.reward is not None and first.reward.file is not None:
        _check_free(first.reward.file)
        files[first.reward.file] = first.reward.text
    for path, text in files.items():
        _write(path, text)
    for line in first.said:
        print(line)
    print(f"wrote {' and '.join(map(str, files))}")
    if first.reward is not None and first.reward.file is not None:
        print(f"write in {first.reward.file} what a response is worth; then:")
    print(f"  pentad train {out} --dry-run\n  pentad train {out}")
    return 0


def _gpus(number: int | None, kind: str | None) -> list[tuple[str, float]]:
    """Names and memory of the GPUs to plan for."""
    from pentad.planning.gpus import gpu_of
    from pentad.record.machine import gpus_here

    if kind is not None and number is None:
        raise UserError(f"--gpu {kind} is given without --gpus", "give --gpus N, too")
    if number is None:
        return gpus_here()
    if number < 0:
        raise UserError(f"--gpus {number} is not a number of GPUs", "give 0 or more")
    if kind is not None:
        gpu = gpu_of(kind)
        return [(gpu.name, gpu.memory_gib)] * number
    found = gpus_here()
    if number > len(found):
        raise UserError(f"--gpus {number}: this machine has {len(found)}", "name their kind, too, as --gpu h100")
    return found[:number]


def _sources(options: argparse.Namespace) -> tuple[str, tuple[str, str] | None]:
    """What to train and evaluate on; a dataset that is known by its name is prepared first."""
    from pentad.data.recipes import RECIPES

    evaluation = None if options.eval is None else ("test", options.eval)
    if options.data not in RECIPES or Path(options.data).exists():
        if options.source is not None:
            raise UserError(f"--source is for {', '.join(RECIPES)}, and DATA is {options.data}", "leave --source out")
        return options.data, evaluation
    folder = Path("data") / options.data
    train, test = folder / "train.parquet", folder / "test.parquet"
    if train.exists() and test.exists():
        print(f"{folder} is there already")
    else:
        prepared = RECIPES[options.data](options.source, folder, None)
        print(f"{train}: {prepared.train_rows} rows\n{test}: {prepared.test_rows} rows")
    return str(train), evaluation or (options.data, str(test))


def _check_free(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} is there already", "give another file with --out, or remove it")


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "give another file with --out") from None
