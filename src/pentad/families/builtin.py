"""Built-in tiny models, by name, as the contents of a `config.json`. For `pentad verify` and `pentad plan`.

Invariant: what is at risk in a layout is there: a vocabulary of 101, a prime, has padding in every split; more
tensor-parallel ranks than key/value heads hold copies of these.
"""

from functools import cache
from typing import Any

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


def builtin_config(name: str, layers: int = LAYERS) -> dict[str, Any]:
    """The contents of config.json of a built-in model.

    Raises:
        KeyError: there is none of that name.
    """
    return {**builtin_models()[name], "num_hidden_layers": layers}
