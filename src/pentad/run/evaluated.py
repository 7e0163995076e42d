"""What `pentad eval` is told to evaluate, as a directory with a model.

Invariant: an adapter is evaluated as the model that it makes of its base; nothing is written beside a temporary
directory.
"""

from collections.abc import Callable
from pathlib import Path

from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.record.checkpoints import DIRECTORY, Checkpoint, Checkpoints, find_checkpoint
from pentad.record.manifest import NAME
from pentad.weights.source import checkpoint_of, gguf_cache, resolve_model

_ADAPTER = "adapter_config.json"


def evaluated_model(path: str, folder: Path, tell: Callable[[str], None]) -> Path:
    """The directory of the model that a path names.

    Args:
        path: a model as `model.path` names one, an adapter's directory, a checkpoint, or a run: its export, or, where
            there is none, its newest checkpoint.
        folder: takes an adapter merged into its model.
        tell: is told what was taken, and of damaged checkpoints.

    Raises:
        UserError: there is no model.
    """
    local = Path(path).expanduser()
    found = next((one for one in (local, local / "model") if _is_model(one)), None)
    if found is not None and (found / _ADAPTER).is_file():
        tell(f"{found}: an adapter, merged into its model")
        return _merged(found, folder)
    if found is not None:
        if found != local:
            tell(f"{path}: a run; its exported model is taken")
        return found
    has_some = any(Checkpoints(directory).steps() for directory in (local, local / DIRECTORY))
    if not has_some and not (local / NAME).exists():
        directory = resolve_model(path, gguf_cache(path), "MODEL")
        return directory
    checkpoint = find_checkpoint(local, tell)
    if checkpoint.path != local:
        tell(f"{path}: checkpoint {checkpoint.path.name} is taken")
    return _of_checkpoint(checkpoint, folder)


def _is_model(path: Path) -> bool:
    is_part = checkpoint_of(path) is not None  # `hf` of a checkpoint has a configuration and no weights
    return not is_part and ((path / "config.json").is_file() or (path / _ADAPTER).is_file())


def _of_checkpoint(checkpoint: Checkpoint, folder: Path) -> Path:
    lora = checkpoint.manifest.settings.get("model", {}).get("lora", {})
    if not lora.get("rank"):
        return resolve_model(str(checkpoint.path), folder, "MODEL")
    from pentad.weights.adapters import export_adapter

    base = resolve_model(checkpoint.manifest.model["path"], gguf_cache(checkpoint.manifest.model["path"]), "MODEL")
    export_adapter(checkpoint.path / "policy", LoraSettings(**lora), base, folder / "adapter")
    return _merged(folder / "adapter", folder, base)


def _merged(adapter: Path, folder: Path, base: Path | None = None) -> Path:
    from pentad.weights.adapters import AdapterReader
    from pentad.weights.merging import merge_adapter

    if base is None:
        name = AdapterReader(adapter).config.get("base_model_name_or_path")
        if not name:
            raise UserError(
                f"{adapter} does not say to which model it belongs", "merge it with `pentad export --merge --model`"
            )
        base = resolve_model(name, gguf_cache(name), "MODEL")
    merge_adapter(adapter, base, folder / "merged")
    return folder / "merged"
