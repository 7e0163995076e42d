"""Weights arrive whole or not at all."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from rollout_models import CONFIGS, reference_model
from transformers.core_model_loading import revert_weight_conversion

from pentad.cluster.process import Process
from pentad.weights.checksum import checksum
from pentad.weights.proof import WeightMismatchError
from pentad.weights.table import WeightTable


def checkpoint(model) -> dict[str, torch.Tensor]:
    return revert_weight_conversion(model, {name: parameter.data for name, parameter in model.named_parameters()})


@pytest.mark.parametrize("family", CONFIGS)
def test_round_trip_writes_every_weight(family):
    model, source = reference_model(CONFIGS[family]), reference_model(CONFIGS[family], seed=1)
    table = WeightTable(model)
    sent = checkpoint(source)
    assert table.shapes() == {name: tuple(tensor.shape) for name, tensor in sent.items()}
    table.load(reversed(list(sent.items())))
    for (name, got), want in zip(model.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(got, want), name
    assert table.checksums() == {name: checksum(tensor) for name, tensor in sent.items()}


def test_experts_go_by_their_checkpoint_names():
    names = WeightTable(reference_model(CONFIGS["qwen3_moe"])).shapes()
    assert names["model.layers.1.mlp.experts.3.up_proj.weight"] == (32, 48)


def test_a_tied_output_layer_is_not_expected():
    assert "lm_head.weight" not in WeightTable(reference_model(CONFIGS["qwen3"])).shapes()
    assert "lm_head.weight" in WeightTable(reference_model(CONFIGS["llama"])).shapes()


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda sent: sent[1:], "did not arrive: model.embed_tokens.weight"),
        (lambda sent: [*sent, sent[0]], "model.embed_tokens.weight arrived twice"),
        (lambda sent: [*sent, ("model.extra", sent[0][1])], "model.extra arrived"),
        (lambda sent: [(sent[0][0], sent[0][1][:-1]), *sent[1:]], "model.embed_tokens.weight arrived as"),
    ],
)
def test_names_what_is_wrong(spoil, message):
    model = reference_model(CONFIGS["qwen3"])
    sent = [(name, parameter.data.clone()) for name, parameter in model.named_parameters()]
    assert sent[0][0] == "model.embed_tokens.weight"
    with pytest.raises(WeightMismatchError, match=message):
        WeightTable(model).load(spoil(sent))


def test_a_tensor_is_given_back_before_the_next_is_waited_for():
    """Else the bucket that it is in stays in the object store meanwhile."""
    model = reference_model(CONFIGS["llama"])

    def tensors():
        for name, tensor in model.named_parameters():
            made = [tensor.detach().clone()]
            taken = weakref.ref(made[0])
            yield name, made.pop()
            assert taken() is None, f"{name} is still held"

    WeightTable(model).load(Process._noting(SimpleNamespace(), "loading", tensors()))
