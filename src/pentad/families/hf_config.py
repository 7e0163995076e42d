"""From a Hugging Face `config.json` to the facts that everything else is made from. Without transformers.

Invariant: the facts are those that transformers would give from the same file; a value that is absent is the one that
transformers would take, and what Pentad does not compute is refused.
"""

from collections.abc import Mapping
from typing import Any

from pentad.errors import UserError
from pentad.families.catalog import FAMILIES, family_named
from pentad.families.config_values import ConfigValues
from pentad.families.facts import ModelFacts
from pentad.families.family import Refusal

VALUE_HEAD = "ForTokenClassification"
"""How the name of a critic's architecture ends."""

# Rotary scaling that depends on positions alone, and never on how long a batch is.
ROTARY = ("default", "linear", "llama3", "yarn")


def _rotary(values: ConfigValues) -> Mapping[str, Any]:
    """It had another name, and its kind as well, in older files."""
    return values.get("rope_parameters") or values.get("rope_scaling") or {}


def _rotary_type(values: ConfigValues) -> str:
    return _rotary(values).get("rope_type") or _rotary(values).get("type") or "default"


def _rotated_part(values: ConfigValues) -> float:
    return _rotary(values).get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0


def _other_attention(values: ConfigValues) -> bool:
    """Absent, the kinds of the layers follow from other values, which are refused on their own."""
    kinds = values.get("layer_types")
    return kinds is not None and not (
        isinstance(kinds, list | tuple) and all(kind == "full_attention" for kind in kinds)
    )


# What no family may ask for.
_REFUSED = (
    Refusal("attention_bias", "the output projection has no bias", lambda values: values.get("attention_bias")),
    Refusal("mlp_bias", "feed-forward layers have no biases", lambda values: values.get("mlp_bias")),
    Refusal(
        "hidden_act other than silu",
        "feed-forward layers are SwiGLU",
        lambda values: values.get("hidden_act", "silu") != "silu",
    ),
    Refusal("use_sliding_window", "attention sees all earlier tokens", lambda values: values.get("use_sliding_window")),
    Refusal("layer_types other than full_attention", "attention sees all earlier tokens", _other_attention),
    Refusal(
        f"rotary scaling other than {', '.join(ROTARY)}",
        "frequencies do not depend on the length of a batch",
        lambda values: _rotary_type(values) not in ROTARY,
    ),
    Refusal("partial_rotary_factor", "a head is rotated as a whole", lambda values: _rotated_part(values) != 1.0),
)


def read_config(config: Mapping[str, Any], where: str = "config.json") -> ConfigValues:
    """The values of a configuration, with the defaults of its family.

    Raises:
        UserError: an unsupported architecture, or something of it that is not computed.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        what = "has no model_type" if name is None else f"is of architecture {name!r}, which is not supported"
        raise UserError(f"{where} {what}", f"use a model of architecture {', '.join(sorted(FAMILIES))}")
    family = family_named(name)
    values = ConfigValues(config, family.defaults, where, family.nullable)
    for refusal in (*_REFUSED, *family.refused):
        if refusal.asks(values):
            cause = f"{where} asks for {refusal.what}, which is not supported: {refusal.why}"
            raise UserError(cause, refusal.fix)
    return values


def facts_from_config(config: Mapping[str, Any], where: str = "config.json") -> ModelFacts:
    """The facts of a model from its configuration.

    Args:
        config: the contents of `config.json`.
        where: the file's name, for errors.

    Raises:
        UserError: an unsupported architecture; a size that is missing or is not a whole number above 0.
    """
    values = read_config(config, where)
    heads, hidden = values.size("num_attention_heads"), values.size("hidden_size")
    value_head = any(str(name).endswith(VALUE_HEAD) for name in values.get("architectures") or ())
    return ModelFacts(
        family=config["model_type"],
        num_layers=values.size("num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=values.size_or("num_key_value_heads", heads),
        ffn_hidden_size=values.size("intermediate_size"),
        vocab_size=values.size("vocab_size"),
        head_dim=values.size_or("head_dim", hidden // heads),
        tied=bool(values.get("tie_word_embeddings", False)) and not value_head,
        value_head=value_head,
        max_positions=None if values.get("max_position_embeddings") is None else values.size("max_position_embeddings"),
        **family_named(config["model_type"]).facts(values),
    )


def transformer_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The family's fields of Megatron's TransformerConfig, beside those that follow from the facts.

    Raises:
        UserError: as `read_config`.
    """
    values = read_config(config)
    return dict(family_named(config["model_type"]).transformer(values))
