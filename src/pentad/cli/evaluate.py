"""`pentad eval`: the evaluations of a configuration on a model that is there.

Invariant: the table shows what the file has; nothing is trained, and no run is touched.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from pentad.errors import UserError

DESCRIPTION = "Evaluate a model with the evaluation sets (data.eval) of a configuration, without training."
EXAMPLES = """examples:
  pentad eval mine.yaml                              the model that training begins with (model.path)
  pentad eval mine.yaml runs/mine                    the model of a run: its export, or its newest checkpoint
  pentad eval mine.yaml runs/mine/checkpoints/step-00000040 rollout.eval_n=8 rollout.eval_temperature=1.0
  pentad eval mine.yaml Qwen/Qwen3-0.6B data.eval_limit=200 --json answers.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pentad eval`."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    parser.add_argument(
        "rest",
        metavar="MODEL | key=value",
        nargs="*",
        help="a directory, hub id, .gguf file, checkpoint, run or adapter (default: model.path), and settings",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for metrics and answers (default evals/...)")


def evaluate(options: argparse.Namespace) -> int:
    """Evaluate, print a table, and write the file."""
    model, overrides = _split(options.rest)
    if options.json is not None and options.json.is_dir():
        raise UserError(f"--json: {options.json} is a directory", f"give a file, as {options.json / 'eval.json'}")
    from pentad.cli.loading import load_run

    settings = load_run(options.config, overrides).settings
    if not settings.data.eval:
        raise UserError(f"{options.config}: data.eval is empty", "name a source, such as data.eval={test: FILE}")
    if settings.algorithm.trains_on == "preferences":
        settings = _without_pairs(settings)
    began = time.monotonic()
    from pentad.run.evaluated import evaluated_model

    with tempfile.TemporaryDirectory(prefix="pentad-eval-") as folder:
        directory = evaluated_model(model or settings.model.path, Path(folder), print)
        from pentad.run.evaluating import evaluate

        found = evaluate(settings, directory)
    seconds = time.monotonic() - began
    named = model or settings.model.path
    content = {"model": named, "seconds": round(seconds, 1), "sets": _sets(settings, found)}
    target = options.json or Path("evals") / f"{settings.experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    _print_table(named, content["sets"])
    _write(target, content)
    print(f"{target}: metrics and answers, in {seconds:.1f} s")
    return 0


def _split(rest: list[str]) -> tuple[str | None, list[str]]:
    """The model, if there is one, and the overrides."""
    overrides = [each for each in rest if "=" in each]
    models = [each for each in rest if "=" not in each]
    if len(models) > 1:
        raise UserError(f"two models are given: {models[0]} and {models[1]}", "give one, and settings as key=value")
    return (models[0] if models else None), overrides


def _without_pairs(settings: Any) -> Any:
    """Without the evaluations that compare with a reference."""
    kept = {name: one for name, one in settings.data.eval.items() if one.generates}
    for name in settings.data.eval.keys() - kept.keys():
        print(f"note: data.eval.{name} compares with the reference of a run, and is left out", flush=True)
    if not kept:
        raise UserError("all of data.eval compares with the reference of a run", "name a source that is answered")
    return settings.model_copy(update={"data": settings.data.model_copy(update={"eval": kept})})


def _sets(settings: Any, found: Any) -> dict[str, dict[str, Any]]:
    sets: dict[str, dict[str, Any]] = {}
    for name, one in settings.evals.items():
        prefix = f"eval/{name}/"
        metrics = {key.removeprefix(prefix): v for key, v in found.metrics.items() if key.startswith(prefix)}
        shown = {"source": one.source, "measure": one.measure}
        if one.generates:
            shown |= {"n": one.n, "temperature": one.temperature, "max_response_tokens": one.max_response_tokens}
        sets[name] = {**shown, "metrics": metrics}
        if name in found.answers:
            sets[name]["answers"] = found.answers[name]
    return sets


def _print_table(model: str, sets: dict[str, dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pentad.record.metric_table import find_metric

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=model, title_justify="left")
    for heading, justify in (("evaluation", "left"), ("metric", "left"), ("value", "right")):
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=True)
    for name, one in sets.items():
        for place, (metric, value) in enumerate(one["metrics"].items()):
            known = find_metric(f"eval/{name}/{metric}")
            text = f"{value:.1%}" if known is not None and known.percent else f"{value:.4g}"
            table.add_row("" if place else name, metric, text)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def _write(target: Path, content: dict[str, Any]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: {target} cannot be written: {error.strerror}", "give another file") from None
