"""The arguments of `pentad import`. What it does is in `pentad.cli.foreign`, which is imported when it runs."""

import argparse
from pathlib import Path

DESCRIPTION = (
    "Turn a configuration or launch script of verl, siiRL, AReaL, SkyRL, Trinity-RFT or TRL into one of Pentad's."
)
EXAMPLES = """examples:
  pentad import run_grpo.sh --out run.yaml             the table of all keys, and the configuration
  pentad import config.yaml --from areal --engine hf   with Pentad's own engine in place of sglang or vllm
  pentad import run.sh trainer.total_steps=100         with a setting that the file does not say
  pentad train run.sh trainer.total_steps=100          run it, if no key is in doubt

Each key is taken, without meaning here, or not supported here. What is not supported and changes what is learnt stops
the import; --drop KEY accepts its loss."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pentad import`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a .yaml, .json, .sh or .py file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings of Pentad's to put into the result")
    parser.add_argument("--from", dest="dialect", metavar="SYSTEM", help="verl, siirl, areal, skyrl, trinity or trl")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the configuration there, not to the terminal")
    parser.add_argument("--engine", choices=("hf", "vllm", "sglang"), help="generate with this engine instead")
    parser.add_argument("--gpus", type=int, metavar="N", help="number of GPUs, where the file does not say")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of the training data, to turn epochs into steps")
    parser.add_argument("--var", action="append", default=[], metavar="NAME[=VALUE]", help="an environment variable")
    parser.add_argument(
        "--drop", action="append", default=[], metavar="KEY", help="accept the loss of this key of theirs"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def import_file(options: argparse.Namespace) -> int:
    """Run the import."""
    from pentad.cli.foreign import import_command

    return import_command(options)
