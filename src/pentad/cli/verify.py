"""`pentad verify layouts`: whether a model computes the same on every layout, on this machine.

Invariant: what can be refused is refused before a process is started; each line of the table appears as soon as its
layout is verified.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pentad.errors import UserError
from pentad.families.builtin import builtin_models, check_model_name

if TYPE_CHECKING:
    from pentad.config.schema.megatron import MegatronSettings
    from pentad.families.facts import ModelFacts
    from pentad.layout import Allocation, Layout
    from pentad.verify.findings import Report

_MOST_RANKS_CPU, _LAYERS, _EXPERTS = 4, 4, 8
# Seconds; a deadline is shown in whole ones, and torch cannot wait for ever.
_SHORTEST_S, _LONGEST_S = 1, 1_000_000
# Filled in once it is known that an option was not given: --list does not read them.
_DEFAULTS = {"dtype": "fp32", "deadline": 120.0}
_COLUMNS = (("scored", 9), ("loss", 7), ("gradient norm", 9), ("gradients", 9), ("weights", 7))
_WIDTH = 26


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pentad verify layouts`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a directory, hub id or .gguf file, or a built-in tiny model: {', '.join(builtin_models())}",
    )
    parser.add_argument(
        "--allocations", nargs="+", metavar="STRING", help='as "megatron:t2p2"; without it, all small ones'
    )
    parser.add_argument(
        "--max-ranks", type=int, help="without --allocations: largest layout (default: GPUs, or 4 on CPU)"
    )
    parser.add_argument("--list", action="store_true", help="print the layouts and verify nothing")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="what is computed in (default fp32)")
    parser.add_argument("--shrink", action="store_true", help="random weights, few layers and experts, real widths")
    parser.add_argument("--layers", type=int, help=f"layers of a built-in or shrunk model (default {_LAYERS})")
    parser.add_argument("--experts", type=int, help=f"with --shrink: most experts (default {_EXPERTS})")
    parser.add_argument("--scale", type=int, help="with --shrink: divide all widths and the vocabulary by this")
    parser.add_argument(
        "--megatron",
        nargs="+",
        metavar="KEY=VALUE",
        help="settings, as transformer.recompute_granularity=selective or use_deterministic_algorithms=true",
    )
    parser.add_argument(
        "--lora", type=int, metavar="RANK", help="train adapters of that rank on all linear modules and routers instead"
    )
    parser.add_argument(
        "--critic",
        action="store_true",
        help="a built-in or shrunk model with a value head: values instead of log-probs; a directory says itself what "
        "it is",
    )
    parser.add_argument("--deadline", type=float, help="seconds for one layout (default 120)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")


def verify_layouts(options: argparse.Namespace) -> int:
    """Print a table, one line a layout; 0 if all agree, 1 if one does not."""
    _check(options)
    check_model_name(options.model)
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    megatron = _megatron(options.megatron or ())
    _import_quietly()
    from pentad.families.model_files import facts_of
    from pentad.verify.verification import usable_devices

    with tempfile.TemporaryDirectory(prefix="pentad-verify-") as folder:
        devices = usable_devices()
        directory = _config_directory(options, Path(folder))
        layouts = _layouts(options, facts_of(str(directory)), devices)
        if options.list:
            print("\n".join(f"megatron:{layout}" for layout in layouts))
            return 0
        return _verify(options, _with_weights(options, directory, Path(folder), devices), layouts, devices, megatron)


def _import_quietly() -> None:
    """Megatron warns on import of every optional package that Pentad does without on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as transformers_logging

        import pentad.verify.verification  # noqa: F401
    transformers_logging.disable_progress_bar()


def _verify(
    options: argparse.Namespace,
    directory: Path,
    layouts: "Sequence[Layout]",
    devices: int,
    megatron: "MegatronSettings",
) -> int:
    from pentad.verify.models import lora_of_everything, value_head
    from pentad.verify.processes import RankFailedError
    from pentad.verify.verification import Verification
    from pentad.weights.source import load_config

    where = "GPU (NCCL)" if devices else "CPU (gloo)"
    of = "" if options.lora is None else f", LoRA of rank {options.lora}"
    print(f"{options.model}, {options.dtype}, {where}{of}, {len(layouts)} layouts against one process", flush=True)
    print(_header("values" if value_head(load_config(directory)) else "log-probs"))
    reports = []
    most = min(devices, max(layout.world for layout in layouts))
    settings: dict[str, Any] = {"dtype": options.dtype, "devices": most, "deadline_s": options.deadline}
    if options.lora is not None:
        settings["lora"] = lora_of_everything(options.lora)
    try:
        with Verification(directory, megatron=megatron, **settings) as verification:
            for report in _reports(verification, layouts):
                print(_line(report), flush=True)
                reports.append(report)
                # Each time, so that an interrupted run leaves what it found.
                _write(options, reports, where, complete=len(reports) == len(layouts) + 1)
    except RankFailedError as error:
        print(f"one process cannot compute {options.model}: {error}", file=sys.stderr)
        return 1
    failed = [report.subject for report in reports if not report.passed]
    print(f"{len(failed)} of {len(reports)} differ: {', '.join(failed)}" if failed else f"all {len(reports)} agree")
    return 1 if failed else 0


def _reports(verification: Any, layouts: "Sequence[Layout]") -> "Iterator[Report]":
    yield verification.check_transformers()
    for layout in layouts:
        yield verification.check(layout)


def _check(options: argparse.Namespace) -> None:
    for name in ("experts", "scale"):
        if getattr(options, name) is not None and not options.shrink:
            raise UserError(f"--{name} is read with --shrink only", f"add --shrink, or leave --{name} out")
    if options.allocations and options.max_ranks is not None:
        raise UserError("--max-ranks is not read together with --allocations", "leave one of the two out")
    if options.lora is not None and options.lora < 1:
        raise UserError(f"--lora {options.lora} is no rank", "give a whole number above 0, as 8")
    if options.critic and options.lora is not None:
        raise UserError("--lora is not read together with --critic", "leave one of the two out")
    if options.critic and not options.shrink and options.model not in builtin_models():
        raise UserError(
            "--critic is read for built-in models and with --shrink only: a directory says itself what it is",
            "add --shrink, or give the directory of a *ForTokenClassification model without --critic",
        )
    for name in ("json", "megatron", "dtype", "deadline", "lora"):
        if options.list and getattr(options, name) is not None:
            raise UserError(f"--{name} is not read together with --list", f"leave --{name} or --list out")
    for name in ("layers", "experts", "scale", "max_ranks"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value} is not above 0", "give 1 or more")
    deadline = options.deadline
    # Written so that nan is refused, too.
    if deadline is not None and not _SHORTEST_S <= deadline <= _LONGEST_S:
        raise UserError(
            f"--deadline {deadline:g} is not a number of seconds from {_SHORTEST_S} to {_LONGEST_S:,}",
            "give the seconds that one layout may take, as 120",
        )
    if options.json is not None:
        _check_file(options.json)


def _check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before the first result is there."""
    if path.is_dir():
        raise UserError(f"--json: {path} is a directory", f"give a file, as {path / 'layouts.json'}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--json: there is no directory {path.absolute().parent}", "make it, or give another file")


def _config_directory(options: argparse.Namespace, folder: Path) -> Path:
    """A directory with the configuration of the model that is computed; the user's own has its weights, too."""
    from pentad.verify.models import small_config, tiny_config
    from pentad.weights.critic import critic_config
    from pentad.weights.source import resolve_model

    layers = options.layers or _LAYERS
    if options.shrink:
        if options.model in builtin_models():
            raise UserError(
                f"{options.model} is a built-in tiny model, which --shrink is not for", "leave --shrink out"
            )
        made = small_config(options.model, layers=layers, experts=options.experts or _EXPERTS, scale=options.scale or 1)
        (critic_config(made) if options.critic else made).save_pretrained(folder / "model")
    elif options.model in builtin_models():
        made = tiny_config(options.model, layers=layers)
        (critic_config(made) if options.critic else made).save_pretrained(folder / "model")
    elif options.layers is not None:
        raise UserError("--layers is read for built-in models and with --shrink only", "add --shrink, or leave it out")
    else:
        return resolve_model(options.model, folder)
    return folder / "model"


def _with_weights(options: argparse.Namespace, directory: Path, folder: Path, devices: int) -> Path:
    """The same directory, or one with random weights."""
    import torch

    from pentad.verify.models import write_random_model
    from pentad.weights.checkpoint_model import open_weights
    from pentad.weights.conversion import export_checkpoint
    from pentad.weights.mapping import expected_shapes
    from pentad.weights.source import POLICY, checkpoint_of, load_config

    config = load_config(directory)
    if directory != folder / "model":
        open_weights(directory).check(expected_shapes(config), tied=bool(config.tie_word_embeddings))
        if (checkpoint := checkpoint_of(directory)) is None:
            return directory
        # transformers, with which the first line compares, reads no checkpoints.
        export_checkpoint(checkpoint / POLICY, directory, folder / "weights")
        return folder / "weights"
    if not devices:
        # Threads of this process would be lost in its forks.
        torch.set_num_threads(1)
    write_random_model(config, folder / "weights", torch.float32 if options.dtype == "fp32" else torch.bfloat16)
    return folder / "weights"


def _layouts(options: argparse.Namespace, facts: "ModelFacts", devices: int) -> "list[Layout]":
    from pentad.layout import parse_allocation
    from pentad.layout.validate import refuse
    from pentad.verify.layouts import problems, small_layouts
    from pentad.verify.verification import check_devices

    if options.allocations:
        allocations = [parse_allocation(text) for text in options.allocations]
        for text, allocation in zip(options.allocations, allocations, strict=True):
            refuse(problems(facts, allocation.trainer.layout), f"allocation {text}")
        layouts = _trainers(options.allocations, allocations)
    else:
        layouts = small_layouts(facts, options.max_ranks or devices or _MOST_RANKS_CPU)
    if not layouts:
        raise UserError("there is no layout to compare with one process", "give --allocations, or a larger --max-ranks")
    if not options.list:
        for layout in layouts:
            check_devices(layout, devices)
    return layouts


def _trainers(texts: Sequence[str], allocations: "Sequence[Allocation]") -> "list[Layout]":
    """The trainers' layouts, each once; what is left out is said on stderr, as --list is of layouts only."""
    first: dict[Layout, str] = {}
    for text, allocation in zip(texts, allocations, strict=True):
        layout = allocation.trainer.layout
        if layout in first:
            note = f"{text} has the trainer of {first[layout]}, megatron:{layout}, which is verified once"
        elif len(allocation.components) > 1:
            note = f"only the trainer of {text} is verified, megatron:{layout}"
        else:
            note = ""
        first.setdefault(layout, text)
        if note:
            print(f"note: {note}", file=sys.stderr)
    return list(first)


def _megatron(pairs: Sequence[str]) -> "MegatronSettings":
    """`transformer.KEY=VALUE` and so on, read as overrides of a configuration are."""
    from pentad.config.loading.load import join
    from pentad.config.loading.megatron import check_megatron, complete, describe_added
    from pentad.config.loading.overrides import apply_overrides
    from pentad.config.schema.megatron import MegatronSettings

    switch = "use_deterministic_algorithms"
    parts = tuple(name for name in MegatronSettings.model_fields if name != switch)
    for pair in pairs:
        name, equals, _ = pair.partition("=")
        part, _, key = name.partition(".")
        if not equals or (name != switch and not (part in parts and key)):
            hint = f"begin it with one of {', '.join(parts)}, or write {switch}=true"
            raise UserError(f"--megatron {pair} is not PART.KEY=VALUE", hint)
    found: dict[str, Any] = {}
    if problems := apply_overrides(found, {}, pairs):
        raise join(problems, "--megatron")
    if type(found.get(switch, False)) is not bool:
        raise UserError(f"--megatron {switch} is {found[switch]!r}", f"write {switch}=true, or false")
    if note := describe_added(complete({"megatron": found})):
        print(f"note: {note}", file=sys.stderr)
    settings = MegatronSettings(**found)
    if problems := list(check_megatron(settings, named=lambda key: key)):
        raise join(problems, "--megatron")
    return settings


def _header(scored: str) -> str:
    names = "  ".join(f"{_short(scored if name == 'scored' else name):>{width}}" for name, width in _COLUMNS)
    return f"{'layout':<{_WIDTH}}  {names}  {'seconds':>7}  worst gradient"


def _short(name: str) -> str:
    return {"gradient norm": "grad norm"}.get(name, name)


def _line(report: "Report") -> str:
    found = {"scored" if name in ("values", "log-probs") else name: item for name, item in report.quantities.items()}
    cells = "  ".join(
        f"{f'{item.value:.1e}' if (item := found.get(name)) is not None else '-':>{width}}" for name, width in _COLUMNS
    )
    worst = report.quantities["gradients"].where if "gradients" in report.quantities else ""
    lines = [f"{report.subject:<{_WIDTH}}  {cells}  {report.seconds:7.1f}  {worst}".rstrip()]
    for problem in report.problems:
        first, *rest = problem.splitlines()
        lines += [f"  DIFFERS {first}", *(f"    {line}" for line in rest)]
    return "\n".join(lines)


def _write(options: argparse.Namespace, reports: "Sequence[Report]", where: str, *, complete: bool) -> None:
    if options.json is None:
        return
    content = {
        "model": options.model,
        "dtype": options.dtype,
        "device": where,
        "complete": complete,
        "passed": complete and all(report.passed for report in reports),
        "layouts": [report.to_json() for report in reports],
    }
    try:
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: {options.json} cannot be written: {error.strerror}", "give another file") from None
