"""The command line. Thin: it parses arguments, calls one function, and turns exceptions into messages.

Exit codes: 0 done; 1 a process of the run failed, or Pentad itself did (with a traceback file); 2 an error that the
user can correct; 130, 143, 138 or 129 interrupted by SIGINT (Ctrl-C), SIGTERM, SIGUSR1 or SIGHUP.
"""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from pentad.cli import (
    checkpoint,
    commands,
    convert,
    data,
    evaluate,
    export,
    importing,
    init,
    plan,
    reward,
    runs,
    verify,
)
from pentad.cli.report import report_failed_run, report_fault, report_interrupt, report_user_error, user_error_in
from pentad.errors import UserError
from pentad.record.outcome import RunFailedError


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message[:1].lower() + message[1:], f"see `{self.prog} --help`")


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        try:
            print(f"pentad {version('pentad')}")
        except PackageNotFoundError:
            print("pentad, of unknown version: it runs without being installed")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `arguments` default to those of the process."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # torch warns of a CUDA toolkit without a GPU, for the compiling of extensions; there is none here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        return _run(arguments)
    except KeyboardInterrupt as interrupt:
        report_interrupt(interrupt)
        return getattr(interrupt, "exit_code", 130)
    except BrokenPipeError:
        # The reader of our output has gone; point stdout elsewhere so that Python's own flush at exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (user_error := user_error_in(error)) is not None:
            report_user_error(user_error)
            return 2
        if isinstance(error, RunFailedError):
            report_failed_run(error)
        else:
            report_fault(error)
        return 1


def _run(arguments: list[str]) -> int:
    parser, names = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        near = difflib.get_close_matches(arguments[0], names, n=1, cutoff=0.4)
        fix = f"did you mean `pentad {near[0]}`?" if near else f"use one of {', '.join(names)}"
        raise UserError(f"there is no command {arguments[0]!r}", fix)
    options = _parse(parser, arguments)
    if options.command is None:
        parser.print_help()
        return 2
    return options.call(options)


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Settings, key=value, may stand before options and after them; argparse alone takes them before only."""
    options, rest = parser.parse_known_args(arguments)
    if other := [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")]:
        parser.error(f"unrecognized arguments: {' '.join(other)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = _Parser(prog="pentad", description="Post-train language models on Megatron-Core.", allow_abbrev=False)
    parser.add_argument("--version", nargs=0, action=_Version, help="print the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    train = subparsers.add_parser("train", help="run a configuration", allow_abbrev=False)
    _add_configuration(train)
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything that can be checked, say what the run would do, and end",
    )
    train.set_defaults(call=lambda options: commands.train(options.config, options.overrides, dry=options.dry_run))

    first = subparsers.add_parser(
        "init",
        help="write a configuration for a model and a dataset",
        epilog=init.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    init.add_arguments(first)
    first.set_defaults(call=init.init)

    config = subparsers.add_parser(
        "config", help="check a configuration and print the effective settings", allow_abbrev=False
    )
    _add_configuration(config)
    config.add_argument("--keys", action="store_true", help="list every setting instead")
    config.add_argument("--metrics", action="store_true", help="list every metric instead")
    config.add_argument("--markdown", action="store_true", help="with --keys or --metrics: as the reference page")
    config.set_defaults(call=commands.config)

    datasets = subparsers.add_parser("data", help="prepare a dataset, or show rows of one", allow_abbrev=False)
    data.add_arguments(datasets, _Parser)

    rewards = subparsers.add_parser("reward", help="try the reward of a configuration", allow_abbrev=False)
    reward.add_arguments(rewards, _Parser)

    doctor = subparsers.add_parser("doctor", help="show what is installed, and whether it works", allow_abbrev=False)
    doctor.set_defaults(call=lambda options: commands.doctor())

    imported = subparsers.add_parser(
        "import",
        help="turn a file of verl, siiRL, AReaL, SkyRL, Trinity-RFT or TRL into a configuration",
        description=importing.DESCRIPTION,
        epilog=importing.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    importing.add_arguments(imported)
    imported.set_defaults(call=importing.import_file)

    _add_results(subparsers)
    _add_models(subparsers)
    return parser, list(subparsers.choices)


def _add_results(subparsers: Any) -> None:
    """The commands about what models can do, and what runs have done."""
    evaluated = subparsers.add_parser(
        "eval",
        help="evaluate a model with the evaluation sets of a configuration",
        description=evaluate.DESCRIPTION,
        epilog=evaluate.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    evaluate.add_arguments(evaluated)
    evaluated.set_defaults(call=evaluate.evaluate)

    reported = subparsers.add_parser("report", help="write or serve the report of a run", allow_abbrev=False)
    runs.add_report_arguments(reported)
    reported.set_defaults(call=runs.report)

    listed = subparsers.add_parser(
        "runs",
        help="list runs, or compare some",
        epilog=runs.RUNS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    runs.add_runs_arguments(listed)
    listed.set_defaults(call=runs.runs)


def _add_models(subparsers: Any) -> None:
    """The commands about layouts, checkpoints and weights."""
    planned = subparsers.add_parser(
        "plan", help="predict GPUs, memory and time of a layout, or rank layouts", allow_abbrev=False
    )
    plan.add_arguments(planned)
    planned.set_defaults(call=plan.plan)

    checkpoints = subparsers.add_parser(
        "checkpoint", help="list, check, remove or export checkpoints", allow_abbrev=False
    )
    checkpoint.add_arguments(checkpoints)

    converted = subparsers.add_parser(
        "convert",
        help="make a checkpoint of a Hugging Face model, or the other way round",
        description=convert.DESCRIPTION,
        epilog=convert.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    convert.add_arguments(converted)
    converted.set_defaults(call=convert.convert)

    exported = subparsers.add_parser("export", help="merge an adapter into its model", allow_abbrev=False)
    export.add_arguments(exported)
    exported.set_defaults(call=export.export)

    verified = subparsers.add_parser("verify", help="compare layouts of a model with one process", allow_abbrev=False)
    subjects = verified.add_subparsers(dest="subject", metavar="SUBJECT", required=True, parser_class=_Parser)
    layouts = subjects.add_parser("layouts", help="a model computes the same on every layout", allow_abbrev=False)
    verify.add_arguments(layouts)
    layouts.set_defaults(call=verify.verify_layouts)


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help="a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings that go over the file")
