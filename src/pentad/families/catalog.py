"""All model families, by name. To add one: its file, and a line here.

Invariant: a name is the `model_type` of a config.json; a family is imported when it is first asked for.
"""

from functools import cache
from importlib import import_module

from pentad.families.family import Family

FAMILIES = {
    "llama": "pentad.families.llama",
    "mistral": "pentad.families.mistral",
    "qwen2": "pentad.families.qwen2",
    "qwen3": "pentad.families.qwen3",
    "qwen3_moe": "pentad.families.qwen3_moe",
    "qwen2_moe": "pentad.families.qwen2_moe",
    "mixtral": "pentad.families.mixtral",
}


@cache
def family_named(name: str) -> Family:
    """
    Raises:
        KeyError: there is none of that name.
    """
    return import_module(FAMILIES[name]).FAMILY
