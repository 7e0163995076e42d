"""From a Hugging Face `config.json` to the facts that layouts and plans depend on. Without transformers.

Invariant: the facts are those that transformers would give from the same file; a value that is absent is the one that
transformers would take, and what Pentad does not compute is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pentad.errors import UserError
from pentad.families.facts import ModelFacts

# What transformers takes where a file says nothing, beside what all families must say.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
    },
    "qwen2_moe": {
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "decoder_sparse_step": 1,
        "qkv_bias": True,
    },
    "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
}
FAMILIES = tuple(_DEFAULTS)

# Rotary scaling that depends on positions alone, and never on how long a batch is.
ROTARY = ("default", "linear", "llama3", "yarn")

Values = Mapping[str, Any]


def _rotary(values: Values) -> Values:
    """It had another name, and its kind as well, in older files."""
    return values.get("rope_parameters") or values.get("rope_scaling") or {}


def _rotary_type(values: Values) -> str:
    return _rotary(values).get("rope_type") or _rotary(values).get("type") or "default"


def _rotated_part(values: Values) -> float:
    return _rotary(values).get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0


# What a configuration may ask for, beyond what is computed here: how it is called, and the test.
_REFUSED: tuple[tuple[str, Callable[[Values], Any]], ...] = (
    ("attention_bias", lambda values: values.get("attention_bias")),
    ("mlp_bias", lambda values: values.get("mlp_bias")),
    ("hidden_act other than silu", lambda values: values.get("hidden_act", "silu") != "silu"),
    ("use_sliding_window", lambda values: values.get("use_sliding_window")),
    ("sliding_window", lambda values: values["model_type"] == "mixtral" and values.get("sliding_window")),
    ("qkv_bias=false", lambda values: not values.get("qkv_bias", True)),
    (f"rotary scaling other than {', '.join(ROTARY)}", lambda values: _rotary_type(values) not in ROTARY),
    ("partial_rotary_factor", lambda values: _rotated_part(values) != 1.0),
)


def check_supported(config: Values, where: str = "config.json") -> None:
    """
    Raises:
        UserError: an unsupported architecture, or something of it that is not computed.
    """
    family = config.get("model_type")
    if family not in _DEFAULTS:
        what = "has no model_type" if family is None else f"is of architecture {family!r}, which is not supported"
        raise UserError(f"{where} {what}", f"use a model of architecture {', '.join(sorted(FAMILIES))}")
    values = {**_DEFAULTS[family], **{key: value for key, value in config.items() if value is not None}}
    for what, asks in _REFUSED:
        if asks(values):
            raise UserError(f"{where} asks for {what}, which is not supported", "use a model without it")


def facts_from_config(config: Mapping[str, Any], where: str = "config.json") -> ModelFacts:
    """The facts of a model from its configuration.

    Args:
        config: the contents of `config.json`.
        where: the file's name, for errors.

    Raises:
        UserError: an unsupported architecture; a size that is missing or is not a whole number above 0.
    """
    check_supported(config, where)
    family = config["model_type"]
    values = {**_DEFAULTS[family], **{key: value for key, value in config.items() if value is not None}}

    def size(name: str) -> int:
        value = values.get(name)
        if type(value) is not int or value < 1:
            given = "is missing" if value is None else f"is {value!r}"
            raise UserError(f"{where}: {name} {given}", f"give {name} as a whole number above 0")
        return value

    def optional(name: str, default: int) -> int:
        return size(name) if name in values else default

    layers, heads, hidden = size("num_hidden_layers"), size("num_attention_heads"), size("hidden_size")
    ffn = size("intermediate_size")
    # transformers has called it by either name, and writes the later one for families that began with the other.
    default = "num_local_experts" if family == "mixtral" else "num_experts"
    experts = next((name for name in ("num_local_experts", "num_experts") if config.get(name) is not None), default)
    routed = family in ("qwen2_moe", "qwen3_moe", "mixtral") and values[experts] != 0
    return ModelFacts(
        family=family,
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=optional("num_key_value_heads", heads),
        ffn_hidden_size=ffn,
        vocab_size=size("vocab_size"),
        head_dim=optional("head_dim", hidden // heads),
        tied=bool(values.get("tie_word_embeddings", False)),
        num_experts=size(experts) if routed else None,
        moe_ffn_hidden_size=optional("moe_intermediate_size", ffn) if routed else None,
        experts_per_token=size("num_experts_per_tok") if routed else 0,
        shared_ffn_hidden_size=size("shared_expert_intermediate_size") if routed and family == "qwen2_moe" else 0,
        dense_layers=_dense_layers(values, layers) if routed else (),
        qkv_bias=family == "qwen2" or (family == "qwen2_moe" and bool(values["qkv_bias"])),
        qk_norm=family in ("qwen3", "qwen3_moe"),
        max_positions=optional("max_position_embeddings", 0) or None,
    )


def _dense_layers(values: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Layers without experts: those named, and all but every so manieth."""
    named, step = values.get("mlp_only_layers", ()), values.get("decoder_sparse_step", 1)
    return tuple(layer for layer in range(layers) if layer in named or (layer + 1) % step)
