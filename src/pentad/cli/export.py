"""`pentad export`: a model that transformers and every engine load, from an adapter.

Invariant: nothing is overwritten.
"""

import argparse
from pathlib import Path

from pentad.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="an adapter in PEFT's format, or a run that trained one"
    )
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the model that it belongs to")
    parser.add_argument("--model", help="that model: a directory, hub id or .gguf file (default: as the adapter says)")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist")


def export(options: argparse.Namespace) -> int:
    """Write the merged model.

    Raises:
        UserError: there is no adapter, or its model is not found.
    """
    from pentad.weights.adapters import CONFIG, AdapterReader

    adapter = next((path for path in (options.path, options.path / "model") if (path / CONFIG).is_file()), None)
    if adapter is None:
        raise UserError(
            f"{options.path} holds no adapter",
            f"name a directory with {CONFIG}; a run writes one to <run>/model at its end",
        )
    if not options.merge:
        raise UserError(f"{adapter} is an adapter in PEFT's format already", "add --merge to merge it into its model")
    from pentad.weights.merging import merge_adapter
    from pentad.weights.source import resolve_model

    model = options.model or AdapterReader(adapter).config.get("base_model_name_or_path")
    if not model:
        raise UserError(f"{adapter} does not say to which model it belongs", "name the model with --model")
    base = resolve_model(model, Path("~/.cache/pentad/gguf").expanduser() / "export")
    modules = merge_adapter(adapter, base, options.out)
    print(f"{options.out}: {base} with the adapters of {modules} modules merged into it")
    return 0
