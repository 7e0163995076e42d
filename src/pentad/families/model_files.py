"""Finding a model's facts from what the user calls it: a directory, a file, or a name on the hub.

Invariant: nothing is downloaded. Local files go before the built-in table, so that a model that is here is planned as
it is.
"""

import difflib
import json
from pathlib import Path

from pentad.errors import UserError
from pentad.families.catalog import FAMILIES
from pentad.families.facts import ModelFacts
from pentad.families.gguf_header import read_gguf_config
from pentad.families.hf_config import facts_from_config
from pentad.families.known_models import known_facts, known_models


def facts_of(model: str) -> ModelFacts:
    """The facts of a model.

    Args:
        model: a directory with `config.json`, a `.json` or `.gguf` file, or a hub name that is in the local Hugging
            Face cache or in the table of well-known models.

    Raises:
        UserError: nothing of that name is known here, with the nearest names; or its configuration cannot be used.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _of_directory(path)
    if path.suffix == ".gguf" and path.is_file():
        return facts_from_config(read_gguf_config(path), str(path))
    if path.is_file():
        return _of_file(path)
    cached = _cached_config(model)
    facts = _of_file(cached) if cached is not None else known_facts(model)
    if facts is None:
        raise _unknown(model)
    return facts


def _of_directory(path: Path) -> ModelFacts:
    # A checkpoint has it in a directory of its own.
    file = next((file for file in (path / "config.json", path / "hf" / "config.json") if file.is_file()), None)
    if file is None:
        found = sorted(path.glob("*.gguf"))
        fix = f"give {found[0]}" if found else "give a Hugging Face model directory"
        raise UserError(f"model: {path} has no config.json", fix)
    return _of_file(file)


def _of_file(path: Path) -> ModelFacts:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "give a config.json, or the directory that holds it"
        raise UserError(f"model: {path} cannot be read as JSON: {error}", fix) from None
    if not isinstance(config, dict):
        raise UserError(f"model: {path} is not the configuration of a model", "give a config.json")
    return facts_from_config(config, str(path))


def _cached_config(name: str) -> Path | None:
    """The configuration of a hub model in the local cache, by the cache's documented layout."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    revision = folder / "refs" / "main"
    if not revision.is_file():
        return None
    config = folder / "snapshots" / revision.read_text().strip() / "config.json"
    return config if config.is_file() else None


def _unknown(model: str) -> UserError:
    cause = f"model: there is no directory {model}"
    if model.startswith((".", "/", "~")) or model.endswith((".json", ".gguf")):
        return UserError(f"model: there is no {model} here", "check the path")
    names = list(known_models())
    # Without the owner as well: Qwen3-8B means Qwen/Qwen3-8B.
    by_short = {name.rpartition("/")[2].lower(): name for name in names}
    near = difflib.get_close_matches(model, names, n=3, cutoff=0.7)
    near += [by_short[short] for short in difflib.get_close_matches(model.lower(), by_short, n=3, cutoff=0.7)]
    near = list(dict.fromkeys(near))[:3]
    suggestion = f"did you mean {' or '.join(near)}? Else " if near else ""
    return UserError(
        f"{cause}, and {model} is neither in the Hugging Face cache nor a model that planning knows",
        f"{suggestion}give the path of its config.json, if its architecture is {', '.join(FAMILIES)}",
    )
