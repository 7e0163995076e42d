"""`pentad plan`: what a model needs on a layout, or which layouts suit a number of GPUs. No GPU, no download.

Invariant: an option that would not be read is refused. Imports wait until a form of the command needs them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pentad.errors import UserError

if TYPE_CHECKING:
    from pentad.families.facts import ModelFacts
    from pentad.planning.memory import Workload
    from pentad.planning.plan import LayoutPlan

_TOKENS, _MICROBATCHES, _SEQUENCE, _TOP, _GPU = 8192, 8, 4096, 10, "h200"

# Options besides --gpu and --json -> the forms that read them.
_FORMS = {
    "model": ("layout", "ranking"),
    "allocation": ("layout",),
    "gpus": ("ranking",),
    "tokens": ("layout", "ranking"),
    "microbatches": ("layout",),
    "step_tokens": ("ranking",),
    "sequence": ("layout", "ranking"),
    "recompute": ("layout", "ranking"),
    "dtype": ("layout", "ranking"),
    "top": ("ranking",),
}
_NAMES = {"config": "a CONFIG file", "layout": "--allocation", "ranking": "--gpus"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command's three forms."""
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help="plan this configuration")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that go over the file")
    parser.add_argument(
        "--model", help="a directory, a config.json, a .gguf file, a hub name, or a tiny model of `verify`"
    )
    parser.add_argument("--allocation", help="plan the model on this layout, as megatron:d2t4")
    parser.add_argument("--gpus", type=int, help="rank all layouts of the model on so many GPUs")
    parser.add_argument("--gpu", help=f"kind of GPU: a100, h100, h200, b200 (default {_GPU})")
    parser.add_argument("--tokens", type=int, help=f"tokens of a microbatch on one replica (default {_TOKENS})")
    parser.add_argument("--microbatches", type=int, help=f"of a step on one replica (default {_MICROBATCHES})")
    parser.add_argument("--step-tokens", type=int, help="with --gpus: tokens of a step (default 4 * tokens * gpus)")
    parser.add_argument(
        "--sequence",
        type=int,
        help=f"tokens of a sequence (default {_SEQUENCE}, at most --tokens and the model's positions)",
    )
    parser.add_argument("--recompute", help="none (default), selective or full")
    parser.add_argument("--dtype", help="bf16 (default) or fp32")
    parser.add_argument("--top", type=int, help=f"with --gpus: how many layouts are shown (default {_TOP})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")


def plan(options: argparse.Namespace) -> int:
    """Run the form of the command that the options ask for."""
    form = _form(options)
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import plan_to_json

    gpu = gpu_of(options.gpu or _GPU)
    if form == "ranking":
        return _rank(options)
    if form == "layout":
        planned = _plan_layout(options)
    else:
        planned = plan_configuration(options.config, options.overrides, gpu.name)
    from pentad.planning.draw import draw_plan

    sys.stdout.write(draw_plan(planned))
    _write(options.json, plan_to_json(planned))
    return 0


def plan_configuration(path: Path, overrides: Sequence[str], gpu: str) -> "LayoutPlan":
    """Plan trainer and engines of a configuration.

    Raises:
        UserError: something is wrong with the settings, the model or the layout.
    """
    from pentad.config.loading.load import load_settings
    from pentad.families.model_files import facts_of
    from pentad.layout import parse_allocation
    from pentad.layout.cluster_checks import check_response
    from pentad.layout.megatron_checks import check_transformer
    from pentad.layout.validate import check_layout, check_supported, refuse
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import make_plan
    from pentad.run.workload import workload

    loaded = load_settings(path, overrides)
    settings = loaded.settings
    allocation = parse_allocation(settings.allocation)
    facts = facts_of(settings.model.path)
    if settings.algorithm.trains_on == "rollouts" or any(one.generates for one in settings.data.eval.values()):
        refuse(check_response(facts, settings.rollout.max_response_tokens), settings.model.path)
    work, engine, notes = workload(settings, facts, allocation)
    notes += loaded.notices + tuple(item.cause for item in check_supported(allocation))
    layout = allocation.trainer.layout
    if not check_layout(facts, layout):  # else `make_plan` refuses it
        refuse(check_transformer(facts, layout, settings.megatron.transformer), "megatron.transformer")
    return make_plan(settings.model.path, facts, allocation, gpu_of(gpu), work, engine, notes)


def _form(options: argparse.Namespace) -> str:
    given = {name: getattr(options, name) for name in _FORMS if getattr(options, name) is not None}
    if options.config is not None:
        form = "config"
    elif options.gpus is not None and options.allocation is None:
        form = "ranking"
    else:
        form = "layout"
    for name in given:
        if form not in _FORMS[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} is not read together with {_NAMES[form]}", f"leave {flag} out")
    if form == "config":
        return form
    if "model" not in given:
        raise UserError(
            "there is nothing to plan",
            "write `pentad plan FILE.yaml`, `pentad plan --model M --allocation megatron:d2t4`, or "
            "`pentad plan --model M --gpus 8`",
        )
    if form == "layout" and "allocation" not in given:
        raise UserError("no layout is given", "give --allocation, as megatron:d2t4, or --gpus to compare all layouts")
    return form


def _work(options: argparse.Namespace, facts: "ModelFacts") -> "Workload":
    from pentad.layout.cluster_checks import check_sequence
    from pentad.layout.validate import refuse
    from pentad.planning.memory import Workload

    tokens = _TOKENS if options.tokens is None else options.tokens
    if options.sequence is not None:
        refuse(check_sequence(facts, options.sequence), f"--sequence {options.sequence}")
    sequence = min(_SEQUENCE, tokens, facts.max_positions or tokens)
    return Workload(
        tokens=tokens,
        microbatches=_MICROBATCHES if options.microbatches is None else options.microbatches,
        sequence=sequence if options.sequence is None else options.sequence,
        dtype=options.dtype or "bf16",
        recompute=options.recompute or "none",
    )


def _facts(model: str) -> "ModelFacts":
    """The facts of a built-in model, which `pentad verify` has too, or of any other."""
    from pentad.families.builtin import builtin_config, builtin_models
    from pentad.families.hf_config import facts_from_config
    from pentad.families.model_files import facts_of

    return facts_from_config(builtin_config(model), model) if model in builtin_models() else facts_of(model)


def _plan_layout(options: argparse.Namespace) -> "LayoutPlan":
    from pentad.layout import parse_allocation
    from pentad.planning.engine import EngineWork
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import make_plan

    facts = _facts(options.model)
    allocation = parse_allocation(options.allocation)
    work = _work(options, facts)
    engine = EngineWork(tokens=work.sequence, dtype=work.dtype)
    return make_plan(options.model, facts, allocation, gpu_of(options.gpu or _GPU), work, engine)


def _rank(options: argparse.Namespace) -> int:
    from pentad.planning.draw import draw_ranking
    from pentad.planning.gpus import gpu_of
    from pentad.planning.plan import make_ranking, ranking_to_json

    facts, gpu = _facts(options.model), gpu_of(options.gpu or _GPU)
    work = _work(options, facts)
    top = _TOP if options.top is None else options.top
    if top < 1:
        raise UserError(f"--top {top} shows nothing", "give 1 or more")
    step_tokens = 4 * work.tokens * options.gpus if options.step_tokens is None else options.step_tokens
    candidates = make_ranking(facts, options.gpus, gpu, work, step_tokens)
    subject = (options.model, facts, options.gpus, gpu, work, step_tokens, candidates)
    sys.stdout.write(draw_ranking(*subject, top))
    _write(options.json, ranking_to_json(*subject))
    return 0


def _write(path: Path | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written: {error.strerror}", "give another file") from None
