"""Built-in tiny models, by name, as the contents of a `config.json`. For `pentad verify` and `pentad plan`.

Invariant: what is at risk in a layout is there: a vocabulary of 101, a prime, has padding in every split; more
tensor-parallel ranks than key/value heads hold copies of these.
"""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pentad.errors import UserError
from pentad.families.catalog import FAMILIES, family_named

LAYERS = 4
_SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}


@cache
def builtin_models() -> dict[str, dict[str, Any]]:
    """Name -> values of config.json, without the number of layers."""
    families = [family_named(name) for name in FAMILIES]
    return {
        name: {"model_type": family.name, **_SHAPE, **values}
        for family in families
        for name, values in family.tiny.items()
    }


def check_model_name(model: str) -> None:
    """Refuse at once what can be no model: neither built in, nor here, nor a name on the hub (`OWNER/NAME`).

    Raises:
        UserError: with the built-in models.
    """
    path = Path(model).expanduser()
    if model in builtin_models() or path.exists() or model.startswith((".", "/", "~")) or model.count("/") == 1:
        return
    names = ", ".join(builtin_models())
    near = get_close_matches(model, builtin_models(), n=2, cutoff=0.7)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"{model} is no built-in model, and there is no directory or file of that name",
        f"{suggestion}The built-in models are {names}; else give a directory, a .gguf file, or a hub id as OWNER/NAME",
    )


def builtin_config(name: str, layers: int = LAYERS) -> dict[str, Any]:
    """The contents of config.json of a built-in model.

    Raises:
        KeyError: there is none of that name.
    """
    return {**builtin_models()[name], "num_hidden_layers": layers}
