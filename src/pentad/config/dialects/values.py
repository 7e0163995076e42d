"""Conversions of single values from other systems' words and units to Pentad's. Pure.

Invariant: a value that has no counterpart is returned as `Nothing` or `Unsupported`, never as something near it.
"""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from pentad.config.dialects.rules import Nothing, Unsupported
from pentad.config.loading.yaml_io import write_value

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def flag(value: Any) -> Any:
    """True or false, also as YAML 1.1 and shells write them."""
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    return Unsupported(f"{write_value(value)} is neither true nor false")


def number(value: Any) -> Any:
    """A number as a float."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return float(str(value))
    except ValueError:
        return Unsupported(f"{write_value(value)} is not a number")


def whole(value: Any) -> Any:
    """A whole number."""
    converted = number(value)
    if isinstance(converted, float):
        return int(converted) if converted.is_integer() else Unsupported(f"{write_value(value)} is not a whole number")
    return converted


def count(value: Any) -> Any:
    """A whole number of 1 or more; less stands for the default."""
    converted = whole(value)
    return Nothing(f"{write_value(value)} stands for the default") if converted in (0, -1) else converted


def text(value: Any) -> Any:
    """Text; numbers as they are written."""
    return value if isinstance(value, str) else write_value(value)


def every(value: Any) -> Any:
    """An interval in steps: -1 and 0 switch it off, which is 0 here."""
    converted = whole(value)
    return max(0, converted) if isinstance(converted, int) else converted


def keep(value: Any) -> Any:
    """How many checkpoints are kept; null, -1 and 0 keep all."""
    if value is None or value in (-1, 0):
        return Unsupported("keep all checkpoints", learns=False)
    return whole(value)


def words(table: Mapping[Any, Any], what: str) -> Callable[[Any], Any]:
    """A conversion by a table; `what` says what an unknown word would choose."""

    def convert(value: Any) -> Any:
        word = value.lower() if isinstance(value, str) else value
        if word in table:
            return table[word]
        return Unsupported(f"{what} {write_value(value)}")

    return convert


def loggers(value: Any) -> Any:
    """A list of the loggers that exist here."""
    named = value if isinstance(value, list) else [value]
    if named == ["all"]:
        named = ["tensorboard", "wandb"]
    known = list(
        dict.fromkeys(name for name in named if name in ("console", "tensorboard", "wandb", "mlflow", "swanlab"))
    )
    others = [name for name in named if name not in (*known, "none", None)]
    if others and not known:
        return Unsupported(f"log to {', '.join(map(str, others))}", learns=False)
    return ["console", *(name for name in known if name != "console")]


def dtype(value: Any) -> Any:
    """A precision."""
    table = {"bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "fp32": "fp32", "float": "fp32", "auto": "auto"}
    return words(table, "compute in")(str(value).removeprefix("torch."))


def schedule(value: Any) -> Any:
    """The shape of the learning rate."""
    table = {
        "constant": "constant",
        "constant_with_warmup": "constant",
        "cosine": "cosine",
        "cosine_with_min_lr": "cosine",
        "linear": "linear",
    }
    return words(table, "a learning rate by")(value)


def names(value: Any) -> Any:
    """A list of text: one text is a list of one."""
    if value is None:
        return Nothing("there are none")
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def sources(value: Any) -> Any:
    """Sources of data: a text, or a list, which is read as one set of rows."""
    named = value if isinstance(value, list) else [value]
    if not named:
        return Unsupported("train on no file")
    return text(named[0]) if len(named) == 1 else [text(item) for item in named]


def eval_sources(value: Any) -> Any:
    """Evaluation files by names that are made of their paths."""
    files = value if isinstance(value, list) else [value]
    named: dict[str, str] = {}
    for file in map(str, files):
        path = PurePosixPath(file)
        stem = (
            path.parent.name if path.stem in ("test", "val", "validation", "eval") and path.parent.name else path.stem
        )
        name = safe_name(stem)
        named[name if name not in named else f"{name}-{len(named) + 1}"] = file
    return named


def safe_name(value: str) -> str:
    """The text as a name of a run or of an evaluation: letters, digits, '.', '_' and '-'."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in value)
    return kept.strip("._-") or "imported"


def recompute(value: Any) -> Any:
    """Gradient checkpointing of whole layers."""
    on = flag(value)
    if on is True:
        return "full"
    return Nothing("nothing is recomputed unless asked for") if on is False else on


def lora_targets(value: Any) -> Any:
    """Modules with adapters by their Hugging Face names, also from Megatron's names."""
    if value is None:
        return Nothing("every projection")
    if isinstance(value, str) and ("*" in value or "\\" in value or value == "all-linear"):
        return value
    listed = names(value)
    if listed == ["all-linear"] or set(listed) >= _MEGATRON_MODULES.keys():
        return "all-linear"
    return [name for item in listed for name in _MEGATRON_MODULES.get(item, (item,))]


_MEGATRON_MODULES: dict[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}


# Arguments of vLLM's that `rollout.vllm` passes on.
TO_VLLM = (
    "gpu_memory_utilization|kv_cache_memory_bytes|max_num_batched_tokens|block_size|enforce_eager|optimization_level"
    "|cudagraph_capture_sizes|max_cudagraph_capture_size|enable_prefix_caching|enable_chunked_prefill"
    "|enable_expert_parallel|disable_custom_all_reduce|async_scheduling|attention_backend"
)
