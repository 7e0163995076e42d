"""Convert a model between a Hugging Face directory and a checkpoint, and between layouts of checkpoints.

Invariant: an option that would not be read is refused; what is written is complete or not there.
"""

import argparse
import time
from pathlib import Path

DESCRIPTION = "Convert a model between a Hugging Face directory and a checkpoint, or a checkpoint to another layout."
EXAMPLES = """examples:
  pentad convert Qwen/Qwen2.5-1.5B --out qwen-t2p2 --layout t2p2   a checkpoint, as ranks of megatron:t2p2 hold it
  pentad convert runs/mine --out model                             a Hugging Face directory of the newest checkpoint
  pentad convert qwen-t2p2 --out qwen-d8 --layout "(attn:d8|ffn:e8)"   to another layout

Every layout reads the checkpoints of every other; a checkpoint may be given as model.path."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pentad convert`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a Hugging Face directory, a hub id, a .gguf file, a checkpoint, or a run (its newest checkpoint)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument(
        "--to",
        choices=("checkpoint", "hf"),
        help="what to write (default: hf of a checkpoint, unless --layout is given; otherwise checkpoint)",
    )
    parser.add_argument("--layout", metavar="SIZES", help="of a checkpoint, as t2p2 or (attn:t2|ffn:e2) (default d1)")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        help="of the weights (default: as in the source; of a run's checkpoint as hf: that of the run)",
    )


def convert(options: argparse.Namespace) -> int:
    """Run the conversion and print what was written."""
    from rich.filesize import decimal

    from pentad.run.converting import Wanted, convert_model

    began = time.monotonic()
    wanted = Wanted(options.out, options.to, options.layout, options.dtype)
    written = convert_model(options.source, wanted, print)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {written}, {decimal(size)}, in {time.monotonic() - began:.1f} s")
    return 0
