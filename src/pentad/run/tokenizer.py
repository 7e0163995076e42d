"""The tokenizer of a run, without the rest of it."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pentad.config.schema.run import RunSettings
from pentad.run.sources import read_template
from pentad.weights.source import gguf_cache, load_tokenizer, resolve_model


def tokenizer_path(setting: str | None, directory: Path) -> str:
    """Where the tokenizer is loaded from: a directory, absolute, or a hub id as it is.

    Args:
        setting: `model.tokenizer`.
        directory: the model's.
    """
    if setting is None:
        return str(directory)
    local = Path(setting).expanduser()
    return str(local.absolute()) if local.is_dir() else setting


def run_tokenizer(settings: RunSettings) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template that a run would use.

    Raises:
        UserError: it, or the model that it belongs to, is missing or unreadable.
    """
    model = settings.model
    # A hub model is not downloaded for a tokenizer that lies elsewhere.
    directory = Path() if model.tokenizer is not None else resolve_model(model.path, gguf_cache(model.path))
    tokenizer = load_tokenizer(tokenizer_path(model.tokenizer, directory.absolute()))
    if (template := read_template(model.chat_template)) is not None:
        tokenizer.chat_template = template
    return tokenizer
