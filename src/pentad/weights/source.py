"""From what the user calls a model to a local directory with configuration, weights and tokenizer.

Invariant: the answer is a directory whose configuration and tokenizer transformers can load, and whose tensors
`pentad.weights.checkpoint_model.open_weights` reads; a model on the hub or in a GGUF file is first brought into that
form.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pentad.errors import UserError

# transformers takes seconds to import, and a wrong path is to be told at once.
if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

HF, POLICY, CRITIC = "hf", "policy", "critic"
"""Where a checkpoint has the files of its model beside weights, and the weights of the models that are trained."""

# Everything beside weights and config.json that an exported model needs.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint, damaged or not."""
    return (path / "manifest.json").is_file() and (path / POLICY).is_dir()


def checkpoint_of(directory: Path) -> Path | None:
    """The checkpoint whose model a directory is; None for a Hugging Face directory."""
    parent = directory.absolute().parent
    return parent if directory.name == HF and is_checkpoint(parent) else None


def gguf_cache(path: str) -> Path:
    """Where the weights of a GGUF file are put when they are dequantised; changes with the file."""
    file = Path(path).expanduser()
    stat = f"{file.resolve()}:{file.stat().st_size}:{file.stat().st_mtime_ns}" if file.is_file() else path
    return Path("~/.cache/pentad/gguf").expanduser() / hashlib.sha256(stat.encode()).hexdigest()[:16]


def resolve_model(path: str, cache: Path, setting: str = "model.path") -> Path:
    """A local directory with the model.

    Args:
        path: a directory, a checkpoint, a .gguf file, or a hub id such as Qwen/Qwen3-0.6B.
        cache: where a GGUF file's dequantised weights are put.
        setting: what the path was given as, for errors.

    Returns:
        a directory with config.json and tokenizer, whose tensors `checkpoint_model.open_weights` reads.

    Raises:
        UserError: there is no such directory or file, or the hub cannot be reached.
    """
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise UserError(f"{setting}: there is no file {path}", "check the path")
        return _from_gguf(local, cache / local.stem, setting)
    if local.is_dir():
        if (local / "config.json").is_file():
            return local
        if is_checkpoint(local) and (local / HF / "config.json").is_file():
            return local / HF
        raise _no_model(local, path, setting)
    if local.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(f"{setting}: there is no directory {path}", "check the path; a hub id reads OWNER/NAME")
    return _from_hub(path, setting)


def resolve_critic(path: str) -> Path:
    """A local directory of what `critic.model` names; of a checkpoint with a critic, the critic's.

    Raises:
        UserError: as `resolve_model`.
    """
    own = Path(path).expanduser() / CRITIC
    if (own / "config.json").is_file() and is_checkpoint(own.parent):
        return own
    return resolve_model(path, gguf_cache(path), "critic.model")


def _no_model(local: Path, path: str, setting: str) -> UserError:
    if is_checkpoint(local):
        cause = f"{setting}: checkpoint {path} has no {HF}/config.json; an earlier version of Pentad has written it"
        fix = "run `pentad checkpoint export` with --model and --out, and use what it writes"
        return UserError(cause, fix)
    if checkpoints := sorted([*local.glob("checkpoints/step-*"), *local.glob("step-*")]):
        model = [str(local / "model")] if (local / "model" / "config.json").is_file() else []
        fix = f"give {' or '.join([str(checkpoints[-1]), *model])}"
        return UserError(f"{setting}: {path} is not a model; checkpoints are in it", fix)
    found = sorted(local.glob("*.gguf"))
    fix = f"give {found[0]}" if found else "give a Hugging Face model directory, or a checkpoint"
    return UserError(f"{setting}: {path} has no config.json", fix)


def _from_hub(name: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise UserError(f"{setting}: {name} is neither a directory here nor a model on the hub", "check it") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{setting}: {name} is not a directory here and could not be downloaded: {reason}",
            "check the network, or give a local directory",
        ) from None


def _from_gguf(file: Path, target: Path, setting: str) -> Path:
    """Dequantise once; a finished directory is used again."""
    if (target / "config.json").is_file():
        _forget_quantization(target / "config.json")
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{setting}: transformers cannot read {file}: {error}", "use another file") from error
    # Dequantised now, it is a plain model; transformers would refuse to save it as what the file was.
    model.hf_quantizer = None
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    _forget_quantization(partial / "config.json")
    partial.rename(target)
    return target


def _forget_quantization(file: Path) -> None:
    """The configuration still says what the file was; engines would look for quantised weights."""
    config = json.loads(file.read_text())
    if config.pop("quantization_config", None) is not None:
        file.write_text(json.dumps(config, indent=2) + "\n")


def load_config(directory: Path) -> "PreTrainedConfig":
    """The configuration of a model directory.

    Raises:
        UserError: it cannot be read or names an unknown architecture.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # The first line of a refused value names it, the second says why.
        reason = " ".join(line.strip() for line in lines[: 2 if isinstance(error, StrictDataclassError) else 1])
        raise UserError(f"cannot read {directory / 'config.json'}: {reason}", "check model.path") from None


def load_tokenizer(directory: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model directory or hub id.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or ["unknown reason"])[0]
        raise UserError(f"cannot load a tokenizer from {directory}: {reason}", "set model.tokenizer") from None
    # Where the files are missing, transformers may make an empty one.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{directory} has no tokenizer", "add tokenizer.json, or set model.tokenizer")
    return tokenizer


def companion_files(directory: Path) -> list[Path]:
    """Tokenizer and generation files that belong beside an exported model."""
    return [directory / name for name in _COMPANIONS if (directory / name).is_file()]
