"""Expert load equals what transformers' routers choose, on every layout."""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from tiny import ragged_batch

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches


def loads(rank: Rank, directory: Path, batch: Batch) -> tuple[float, float]:
    trainer = rank.trainer(directory)
    plan = plan_microbatches(batch.lengths, rank.layout.data, batch.num_tokens)
    metrics = trainer.forward_backward(batch, plan, SFTLoss(SFTSettings()))
    return metrics["moe/load_max"], metrics["moe/load_min"]


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(data=2, expert=2),
        Layout(data=2, expert_tensor=2),
        Layout(data=2, pipeline=2),
        Layout(context=2),
    ],
    ids=str,
)
def test_load_is_that_of_transformers(layout: Layout, tiny_models) -> None:
    check("qwen3_moe", layout, tiny_models)


def test_only_layers_with_experts_count(tiny_models) -> None:
    """The first of the two stages has none."""
    check("qwen3_moe_dense", Layout(pipeline=2), tiny_models)


def check(name: str, layout: Layout, tiny_models) -> None:
    tiny = tiny_models(name)
    batch = ragged_batch()
    # What a context-parallel pack is padded with is routed too; this one needs none.
    assert batch.num_tokens % 2 == 0
    chosen = []
    for sequence in batch.tokens.split(batch.lengths):
        logits = tiny.model(sequence[None], output_router_logits=True).router_logits
        top = tiny.model.config.num_experts_per_tok
        chosen.append(torch.stack([layer.reshape(-1, layer.shape[-1]).topk(top).indices for layer in logits]))
    counts = torch.stack(
        [torch.bincount(layer.flatten(), minlength=logits[0].shape[-1]) for layer in torch.cat(chosen, dim=1)]
    ).float()
    relative = counts / counts.mean(dim=1, keepdim=True)
    for most, least in run_on(layout, loads, tiny.directory, batch):
        assert most == pytest.approx(float(relative.max()), rel=1e-6)
        assert least == pytest.approx(float(relative.min()), rel=1e-6)
