"""What a critic begins with: language models, models with a head, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rollout_models import CONFIGS, SHAPE
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    PreTrainedModel,
)

from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.run.critic import check_critic_model
from pentad.weights.critic import CriticReader, critic_config, critic_json
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def made(kind: Any, **values: Any) -> PreTrainedModel:
    return kind.from_config(LlamaConfig(**{**SHAPE, "pad_token_id": 0, **values}))


def check(directory: Path) -> CriticReader:
    reader = CriticReader(directory)
    reader.check(critic_config(load_config(directory)))
    return reader


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_begins_with_a_head_of_zeros(tied, tmp_path: Path) -> None:
    model = made(AutoModelForCausalLM, tie_word_embeddings=tied)
    reader = check(saved(model, tmp_path / "policy"))
    assert not reader.has_head
    assert torch.equal(reader.get("score.weight"), torch.zeros(1, SHAPE["hidden_size"]))
    assert torch.equal(reader.get("model.norm.weight"), model.state_dict()["model.norm.weight"])


@pytest.mark.parametrize("kind", [AutoModelForTokenClassification, AutoModelForSequenceClassification])
def test_a_head_of_one_label_is_taken(kind, tmp_path: Path) -> None:
    model = made(kind, num_labels=1)
    reader = check(saved(model, tmp_path / "critic"))
    assert reader.has_head and torch.equal(reader.get("score.weight"), model.state_dict()["score.weight"])


def test_what_does_not_suit_is_refused(tmp_path: Path) -> None:
    biased = made(AutoModelForTokenClassification, num_labels=1)
    cast(Any, biased).score.bias.data.fill_(0.5)
    wide = saved(made(AutoModelForTokenClassification, num_labels=1), tmp_path / "wide")
    save_file({**load_file(wide / "model.safetensors"), "score.weight": torch.ones(1, 64)}, wide / "model.safetensors")
    other = saved(made(AutoModelForCausalLM), tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 64, "head_dim": 16}))
    cases = {
        "has a head of 2 labels": saved(made(AutoModelForTokenClassification, num_labels=2), tmp_path / "labels"),
        "has score.bias": saved(biased, tmp_path / "biased"),
        "tensor score.weight has shape [1, 64], expected [1, 48]": wide,
        "has shape [97, 48], expected [97, 64]": other,
    }
    for cause, directory in cases.items():
        with pytest.raises(UserError) as refused:
            check(directory)
        assert cause in refused.value.cause and "critic.model" in refused.value.cause + refused.value.fix


def test_a_critic_must_compute_the_policy_s_samples(tmp_path: Path) -> None:
    policy = saved(made(AutoModelForCausalLM), tmp_path / "policy")
    settings = cast(RunSettings, SimpleNamespace(critic=SimpleNamespace(model="given")))
    check_critic_model(settings, policy, policy, longest=64)
    fewer = saved(made(AutoModelForCausalLM, vocab_size=90), tmp_path / "fewer")
    shorter = saved(made(AutoModelForCausalLM, max_position_embeddings=32), tmp_path / "shorter")
    other = saved(made(AutoModelForCausalLM), tmp_path / "other")
    for directory, word in ((policy, "a"), (other, "b")):
        (directory / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {word: 0}}}))
    for directory, cause in ((fewer, "90 token ids"), (shorter, "32 positions"), (other, "another tokenizer")):
        with pytest.raises(UserError, match=cause):
            check_critic_model(settings, policy, directory, longest=64)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_is_one_that_transformers_reads(name, tmp_path: Path) -> None:
    config = CONFIGS[name]
    config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(critic_json((tmp_path / "config.json").read_text()))
    again = load_config(tmp_path)
    assert again.num_labels == 1 and not again.tie_word_embeddings
    with torch.device("meta"):
        model = AutoModelForTokenClassification.from_config(again)
    assert type(model).__name__ == again.architectures[0] and model.score.bias is None
    assert expected_shapes(again) == expected_shapes(critic_config(config))
