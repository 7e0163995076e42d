"""Commands in the documentation: found in bash blocks, and checked without being run.

A `pentad` command is parsed by the real command line; its settings are loaded, over the configuration that it names
where the repository has that, and over a stand-in where a page means the reader's own (`OWN_CONFIGS`). `pentad plan`
runs, as it needs neither GPU nor network. What a whole run does is shown by the tests in `RUN_BY`.
"""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from pages import REPOSITORY, Block

from pentad.cli import main as command_line
from pentad.cli.loading import load_run
from pentad.errors import UserError
from pentad.families.model_files import facts_of
from pentad.layout import parse_allocation
from pentad.layout.validate import check_layout, check_supported

NEEDS = frozenset({"gpu", "network"})

# What a page calls the reader's own configuration.
OWN_CONFIGS = ("CONFIG", "FILE", "mine.yaml", "run.yaml")

# Subcommand, with its own subcommand -> the tests that run it.
RUN_BY = {
    "train": "tests/run/test_first_hour.py",
    "config": "tests/cli/test_config_command.py",
    "init": "tests/cli/test_init_command.py",
    "plan": "tests/cli/test_plan_command.py",
    "report": "tests/record/test_report.py",
    "runs": "tests/record/test_run_list.py",
    "eval": "tests/run/test_evaluation.py",
    "doctor": "tests/cli/test_doctor.py",
    "import": "tests/cli/test_import_command.py",
    "data show": "tests/cli/test_data_and_reward_commands.py",
    "data gsm8k": "tests/data/test_recipes.py",
    "reward try": "tests/cli/test_data_and_reward_commands.py",
    "verify layouts": "tests/cli/test_verify_command.py",
    "checkpoint ls": "tests/cli/test_checkpoint_command.py",
    "checkpoint verify": "tests/cli/test_checkpoint_command.py",
    "checkpoint prune": "tests/cli/test_checkpoint_command.py",
    "checkpoint export": "tests/run/test_converting.py",
    "convert": "tests/run/test_converting.py",
    "export": "tests/weights/test_adapters.py",
}

# First words of commands that are not checked -> why.
UNCHECKED = {
    "[": "the shell's own",
    "exit": "the shell's own",
    "kill": "the shell's own",
    "scontrol": "Slurm's; there is no Slurm here",
    "sleep": "of every system",
    "trap": "the shell's own",
    "wait": "the shell's own",
    ".cache/bin/uv": "uv, as scripts/bootstrap.sh leaves it; it installs packages or pre-commit's hooks",
}
_KEYWORDS = {"until", "while", "if", "do", "then", "else", "done", "fi", "!"}
_HUB_ID = re.compile(r"^(model\.path=|critic\.model=|hf:)?[A-Z][\w-]*/[\w.-]+$")


def simple_commands(text: str) -> list[list[str]]:
    """The words of each command of a bash block: comments, operators, redirections and assignments are left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for token in [*lexer, ";"]:
            if skip:
                skip = False
            elif token in ("<", ">", ">>"):
                skip = True
            elif token and set(token) <= set("();<>|&"):
                found.append(words)
                words = []
            elif words or (token not in _KEYWORDS and not re.match(r"[A-Za-z_]\w*=", token)):
                words.append(token)
    return [words for words in found if words]


def needed(words: list[str]) -> frozenset[str]:
    """What a command certainly needs."""
    needs = set()
    if words[0] == "pentad":
        if any("vllm:" in word for word in words if word.startswith("allocation=")):
            needs.add("gpu")
        if words[1] == "data" and words[2] != "show" and "--source" not in words:
            needs.add("network")
        if words[1] in ("init", "train", "eval", "convert", "reward") and any(map(_HUB_ID.match, words)):
            needs.add("network")
    return frozenset(needs)


def check_command(words: list[str], folder: Path) -> None:
    """Fail where a command cannot be right.

    Args:
        folder: the working directory of a reader, with a configuration of each of `OWN_CONFIGS`.

    Raises:
        AssertionError, UserError: what is wrong.
    """
    program, *arguments = words
    if program == "pentad":
        check_pentad(arguments, folder)
    elif program == "make":
        check_make(arguments)
    elif program in ("python", "pytest"):
        _check_script(arguments)
    else:
        assert program in UNCHECKED, f"{program}: no check is known; add one, or name it in UNCHECKED with the reason"


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for argument in arguments:
        assert argument in targets or "=" in argument, f"the Makefile has no target {argument}"


def _check_script(arguments: list[str]) -> None:
    """The script is there, and each option stands in its text."""
    path = REPOSITORY / arguments[0]
    assert path.exists(), f"there is no {arguments[0]}"
    text = path.read_text() if path.is_file() else ""
    for option in re.findall(r"^--[a-z-]+", "\n".join(arguments), re.MULTILINE):
        assert f'"{option}"' in text, f"{arguments[0]} has no option {option}"


def check_pentad(arguments: list[str], folder: Path) -> None:
    parser, _ = command_line._parser()
    assert arguments[0] in subcommands(parser), f"there is no command pentad {arguments[0]}"
    options = command_line._parse(parser, arguments)
    name = options.command
    name += "".join(f" {getattr(options, part)}" for part in ("dataset", "action", "subject") if hasattr(options, part))
    assert (REPOSITORY / RUN_BY[name]).exists(), f"pentad {name}: no test runs it"
    config = getattr(options, "config", None)
    # `pentad eval` takes a model among the settings.
    overrides = [*getattr(options, "overrides", []), *(word for word in getattr(options, "rest", []) if "=" in word)]
    if config is not None and str(config) not in OWN_CONFIGS:
        assert (REPOSITORY / config).is_file(), f"there is no {config}"
        load_run(REPOSITORY / config, overrides)
    elif config is not None or overrides:
        load_run(folder / (config or "run.yaml"), overrides)
    _check_layouts(options)
    if name == "plan":
        assert options.call(options) == 0


def _check_layouts(options: argparse.Namespace) -> None:
    """Layouts are possible, and legal for the model where its sizes are known here."""
    if options.command == "convert" and options.layout:
        parse_allocation(f"megatron:{options.layout}")
    if options.command == "verify" and options.allocations:
        from pentad.families.builtin import builtin_config, builtin_models
        from pentad.families.hf_config import facts_from_config

        for text in options.allocations:
            allocation = parse_allocation(text)
            problems = check_supported(allocation)
            if options.model in builtin_models():
                facts = facts_from_config(builtin_config(options.model), options.model)
                problems += check_layout(facts, allocation.trainer.layout)
            assert problems == [], f"{text}: {problems}"
    if options.command == "plan" and options.model:
        facts_of(options.model)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below a parser, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def mentioned(text: str) -> Iterator[str]:
    """What is wrong with a command that is named in a sentence, as `pentad init MODEL DATA`: it need not be whole."""
    program, *words = text.split()
    if program == "make":
        check_make([word for word in words if word.isidentifier()])
        return
    parser, _ = command_line._parser()
    for word in list(words):
        below = subcommands(parser)
        if not below or word.startswith("-"):
            break
        if word not in below:
            yield f"there is no command {word!r}"
            return
        parser = below[word]
    options = [word for word in words if word.startswith("--") and word not in parser._option_string_actions]
    yield from (f"{option} is no option of {parser.prog}" for option in options)


def problems_of(block: Block, folder: Path) -> Iterator[str]:
    """What is wrong with the commands of a bash block."""
    for words in simple_commands(block.text):
        try:
            check_command(words, folder)
        except (AssertionError, UserError, SystemExit) as error:
            said = error.cause if isinstance(error, UserError) else str(error)
            yield f"{block}: {shlex.join(words)}\n  {said}"
        if missing := needed(words) - block.needs:
            yield f"{block}: {shlex.join(words)}\n  write <!-- needs: {', '.join(sorted(missing))} --> before the block"
    if unknown := block.needs - NEEDS:
        yield f"{block}: a block cannot need {', '.join(unknown)}"
