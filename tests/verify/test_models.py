"""Random models are reproducible, have no special values, and route tokens by wide margins."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pentad.errors import UserError
from pentad.families.builtin import builtin_models
from pentad.families.model_files import facts_of
from pentad.verify.batch import make_batch, with_objective
from pentad.verify.models import small_config, tiny_config, write_random_model
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config


@pytest.mark.parametrize("family", builtin_models())
def test_weights_are_reproducible_and_not_special(family, checkpoint, tmp_path):
    write_random_model(tiny_config(family), tmp_path / "again", torch.float32)
    first, again = (load_file(folder / "model.safetensors") for folder in (checkpoint(family), tmp_path / "again"))
    assert first.keys() == again.keys() == expected_shapes(load_config(checkpoint(family))).keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert tensor.std() > 1e-4, f"{name} is constant"
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}
    # No two tensors are equal, so none can be taken for another.
    sums = [float(tensor.double().sum()) for tensor in first.values()]
    assert len(set(sums)) == len(sums)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "mixtral", "qwen3_moe_dense"])
def test_experts_are_chosen_by_a_wide_margin_and_all_are_used(family, checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint(family))
    chosen, margins = set(), []

    def look(module, arguments, output):
        logits = torch.nn.functional.linear(arguments[0].flatten(0, -2), module.weight)
        ordered = logits.sort(dim=-1, descending=True)
        margins.append(float((ordered.values[:, 1] - ordered.values[:, 2]).min()))
        chosen.update(ordered.indices[:, :2].flatten().tolist())

    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    for router in routers:
        router.register_forward_hook(look)
    batch = make_batch(model.config.vocab_size)
    with torch.no_grad():
        for tokens in batch.tokens.split(batch.lengths):
            model(input_ids=tokens[None])
    assert len(routers) == (2 if family.endswith("_dense") else 4) and chosen == set(range(4))
    # Logits are of the order of 1; bf16 keeps about 1 in 256 of them.
    assert min(margins) > 0.3


def test_small_version_of_a_real_model(tmp_path):
    config = tiny_config("qwen3_moe", layers=6)
    config.num_experts, config.vocab_size = 16, 1000
    config.save_pretrained(tmp_path / "real")
    small = small_config(str(tmp_path / "real"), layers=2, experts=8, scale=1)
    assert (small.num_hidden_layers, small.num_experts, small.hidden_size, small.vocab_size) == (2, 8, 64, 1000)
    scaled = small_config(str(tmp_path / "real"), layers=2, experts=8, scale=2)
    assert (scaled.hidden_size, scaled.head_dim, scaled.moe_intermediate_size, scaled.vocab_size) == (32, 12, 24, 500)
    with pytest.raises(UserError, match="--scale 5 does not divide hidden_size=64"):
        small_config(str(tmp_path / "real"), layers=2, experts=8, scale=5)
    write_random_model(scaled, tmp_path / "scaled", torch.bfloat16)
    assert load_config(tmp_path / "scaled").num_hidden_layers == 2
    assert {tensor.dtype for tensor in load_file(tmp_path / "scaled" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert facts_of(str(tmp_path / "scaled")).num_experts == 8


def test_batch_has_no_kinks_and_no_cancellation():
    batch = make_batch(101)
    logprobs = -torch.rand(batch.num_tokens) * batch.loss_mask
    whole = with_objective(batch, logprobs)
    assert len(set(batch.lengths)) > 10 and min(batch.lengths) == 2
    assert not batch.loss_mask[batch.sequence_ids() == batch.num_sequences - 2].any(), "one has no response"
    ratio = (logprobs - whole.per_token["old_logprobs"]).exp()[batch.loss_mask]
    for edge in (0.8, 1.25):
        assert (ratio.log() - torch.tensor(edge).log()).abs().min() > 0.05
    assert (ratio < 0.8).any() and (ratio > 1.25).any() and ((ratio > 0.8) & (ratio < 1.25)).any()
    advantages = whole.per_token["advantages"][batch.loss_mask]
    assert (advantages < 0).any() and advantages.mean().abs() > 0.3
    again = with_objective(make_batch(101), logprobs)
    assert all(torch.equal(again.per_token[name], value) for name, value in whole.per_token.items())
