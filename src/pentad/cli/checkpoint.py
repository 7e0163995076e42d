"""`pentad checkpoint`: what checkpoints a run has, whether they are sound, removing some, and a model from one.

Invariant: nothing is removed but by `prune`, which says what it removes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from pentad.errors import UserError
from pentad.record.checkpoints import DIRECTORY, Checkpoints, find_checkpoint, sound

_WIDEST = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `pentad checkpoint`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    listed = actions.add_parser("ls", help="list the checkpoints of a run", allow_abbrev=False)
    listed.add_argument("run", metavar="RUN", type=Path, help="a run directory, or its directory of checkpoints")
    listed.set_defaults(call=lambda options: list_checkpoints(options.run))
    verified = actions.add_parser("verify", help="compare checkpoints with their checksums", allow_abbrev=False)
    verified.add_argument("path", metavar="PATH", type=Path, help="a run, or one checkpoint")
    verified.set_defaults(call=lambda options: verify(options.path))
    pruned = actions.add_parser("prune", help="remove all checkpoints of a run but the newest", allow_abbrev=False)
    pruned.add_argument("run", metavar="RUN", type=Path, help="a run directory, or its directory of checkpoints")
    pruned.add_argument("--keep", type=int, required=True, metavar="N", help="how many are kept; at least 1")
    pruned.set_defaults(call=lambda options: prune(options.run, options.keep))
    exported = actions.add_parser(
        "export", help="write the model of a checkpoint as a Hugging Face directory", allow_abbrev=False
    )
    exported.add_argument("path", metavar="PATH", type=Path, help="a run (its newest checkpoint), or one checkpoint")
    exported.add_argument("--out", required=True, type=Path, help="directory to write; must not exist")
    exported.add_argument(
        "--model", help="take config.json, tokenizer and so on from this model, instead of from the checkpoint"
    )
    exported.set_defaults(call=lambda options: export(options.path, options.out, options.model))


def list_checkpoints(run: Path) -> int:
    """Print a line for each checkpoint: step, size, reward, what is wrong with it if that shows at once."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "size", "reward", "allocation", "path", box=None, pad_edge=False)
    for path in _paths(run):
        try:
            found = sound(path, contents=False)
            reward = found.manifest.metrics.get("reward/mean")
            table.add_row(
                str(found.manifest.step),
                decimal(found.manifest.bytes),
                "" if reward is None else f"{reward:.3f}",
                str(found.manifest.settings.get("allocation", "")),
                str(path),
            )
        except UserError as error:
            table.add_row("", "", "", "", f"{path}: {error.cause}")
    # As wide as it is: a path, or what is wrong with a checkpoint, is never cut.
    Console(highlight=False, width=_WIDEST).print(table)
    return 0


def verify(path: Path) -> int:
    """Compare a checkpoint, or all of a run, with their checksums; 1 where one is damaged."""
    damaged = 0
    for checkpoint in [path] if _is_one(path) else _paths(path):
        try:
            manifest = sound(checkpoint).manifest
            print(f"{checkpoint}: sound, {len(manifest.files)} files, {decimal(manifest.bytes)}")
        except UserError as error:
            damaged += 1
            print(error.cause)
    return 1 if damaged else 0


def prune(run: Path, keep: int) -> int:
    """Remove all checkpoints but the newest `keep`.

    Raises:
        UserError: there are none, none would be left, or the newest that would be left is damaged.
    """
    if keep < 1:
        raise UserError(f"--keep {keep} would leave no checkpoint", "keep 1 or more")
    paths = list(_paths(run))
    for path in paths[-keep:]:
        sound(path)
    removed = Checkpoints(paths[0].parent).prune(keep)
    for path in removed:
        print(f"removed {path}")
    print(f"{len(paths) - len(removed)} kept, {len(removed)} removed")
    return 0


def export(path: Path, out: Path, model: str | None) -> int:
    """Write the model of a checkpoint as a Hugging Face directory."""
    checkpoint = find_checkpoint(path, print)
    lora = checkpoint.manifest.settings.get("model", {}).get("lora", {})
    if lora.get("rank"):
        from pentad.config.schema.lora import LoraSettings
        from pentad.weights.adapters import export_adapter

        base = Path(model or checkpoint.manifest.model["path"])
        export_adapter(checkpoint.path / "policy", LoraSettings(**lora), base, out)
        print(f"{out}: the adapter of step {checkpoint.manifest.step}, from {checkpoint.path}")
        return 0
    from pentad.run.converting import export_model

    export_model(checkpoint, out, model=model)
    print(f"{out}: the model of step {checkpoint.manifest.step}, from {checkpoint.path}")
    return 0


def _is_one(path: Path) -> bool:
    return (path / "manifest.json").exists()


def _paths(run: Path) -> Iterator[Path]:
    """The checkpoints of a run, oldest first.

    Raises:
        UserError: there are none.
    """
    for directory in (run / DIRECTORY, run):
        if paths := list(Checkpoints(directory).steps().values()):
            yield from paths
            return
    raise UserError(f"{run} holds no checkpoints", "name a run directory, or its directory of checkpoints")
