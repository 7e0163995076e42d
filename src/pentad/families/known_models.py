"""Sizes of well-known public models, as their owners publish them: planning needs no download.

Invariant: a known name gives the facts that its `config.json` on the hub gives.
"""

from functools import cache

from pentad.families.facts import ModelFacts
from pentad.families.hf_config import facts_from_config

# Variants of a model that differ in their weights only.
_VARIANTS = ("-Instruct", "-Base", "-Instruct-2507", "-Thinking-2507", "-Instruct-v0.1", "-v0.1", "-Chat")

_QWEN25, _QWEN3, _LLAMA = 151_936, 151_936, 128_256

# layers, hidden, heads, key/value heads, head width, feed-forward width, vocabulary, tied
_DENSE = {
    "Qwen/Qwen2.5-0.5B": ("qwen2", 24, 896, 14, 2, 64, 4864, _QWEN25, True),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 28, 1536, 12, 2, 128, 8960, _QWEN25, True),
    "Qwen/Qwen2.5-3B": ("qwen2", 36, 2048, 16, 2, 128, 11008, _QWEN25, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 28, 3584, 28, 4, 128, 18944, 152_064, False),
    "Qwen/Qwen2.5-14B": ("qwen2", 48, 5120, 40, 8, 128, 13824, 152_064, False),
    "Qwen/Qwen2.5-32B": ("qwen2", 64, 5120, 40, 8, 128, 27648, 152_064, False),
    "Qwen/Qwen2.5-72B": ("qwen2", 80, 8192, 64, 8, 128, 29568, 152_064, False),
    "Qwen/Qwen3-0.6B": ("qwen3", 28, 1024, 16, 8, 128, 3072, _QWEN3, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 28, 2048, 16, 8, 128, 6144, _QWEN3, True),
    "Qwen/Qwen3-4B": ("qwen3", 36, 2560, 32, 8, 128, 9728, _QWEN3, True),
    "Qwen/Qwen3-8B": ("qwen3", 36, 4096, 32, 8, 128, 12288, _QWEN3, False),
    "Qwen/Qwen3-14B": ("qwen3", 40, 5120, 40, 8, 128, 17408, _QWEN3, False),
    "Qwen/Qwen3-32B": ("qwen3", 64, 5120, 64, 8, 128, 25600, _QWEN3, False),
    "meta-llama/Llama-3.2-1B": ("llama", 16, 2048, 32, 8, 64, 8192, _LLAMA, True),
    "meta-llama/Llama-3.2-3B": ("llama", 28, 3072, 24, 8, 128, 8192, _LLAMA, True),
    "meta-llama/Llama-3.1-8B": ("llama", 32, 4096, 32, 8, 128, 14336, _LLAMA, False),
    "meta-llama/Llama-3.1-70B": ("llama", 80, 8192, 64, 8, 128, 28672, _LLAMA, False),
    "meta-llama/Llama-3.3-70B": ("llama", 80, 8192, 64, 8, 128, 28672, _LLAMA, False),
    "mistralai/Mistral-7B-v0.3": ("mistral", 32, 4096, 32, 8, 128, 14336, 32768, False),
    "mistralai/Mistral-7B-Instruct-v0.3": ("mistral", 32, 4096, 32, 8, 128, 14336, 32768, False),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 30, 576, 9, 3, 64, 1536, 49152, True),
}

# ... then experts, experts of a token, width of an expert, width of the shared expert
_MOE = {
    "Qwen/Qwen3-30B-A3B": ("qwen3_moe", 48, 2048, 32, 4, 128, 6144, _QWEN3, False, 128, 8, 768, 0),
    "Qwen/Qwen3-235B-A22B": ("qwen3_moe", 94, 4096, 64, 4, 128, 12288, _QWEN3, False, 128, 8, 1536, 0),
    "Qwen/Qwen1.5-MoE-A2.7B": ("qwen2_moe", 24, 2048, 16, 16, 128, 5632, _QWEN3, False, 60, 4, 1408, 5632),
    "mistralai/Mixtral-8x7B": ("mixtral", 32, 4096, 32, 8, 128, 14336, 32000, False, 8, 2, 14336, 0),
}


# The columns of both tables in config.json.
_COLUMNS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


@cache
def known_models() -> dict[str, ModelFacts]:
    """Hub name -> facts. A name stands for its variants (Instruct, Base and so on) too."""
    rows: dict[str, tuple[object, ...]] = {**_DENSE, **_MOE}
    # None of these models has a sliding window, whatever transformers would take where a file says nothing.
    return {
        name: facts_from_config({**dict(zip(_COLUMNS, row, strict=False)), "sliding_window": None}, name)
        for name, row in rows.items()
    }


def known_facts(name: str) -> ModelFacts | None:
    """The facts of a model of that hub name, or None if it is not in the table."""
    models = known_models()
    if name in models:
        return models[name]
    bases = (name.removesuffix(variant) for variant in _VARIANTS if name.endswith(variant))
    return next((models[base] for base in bases if base in models), None)
