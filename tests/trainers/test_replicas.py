"""Copies of weights stay equal through training; a planted drift is found, and named with its ranks."""

from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from tiny import ragged_batch

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.config.schema.trainer import OptimizerSettings, TrainerSettings
from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.samples.packing import plan_microbatches

NORM, EXPERTS = "decoder.final_layernorm.weight", "decoder.layers.0.mlp.experts.weight1"
PROJECTION, EMBEDDING = "decoder.layers.0.self_attention.linear_proj.weight", "embedding.word_embeddings.weight"
ROUTER, COPY = "decoder.layers.1.mlp.router.weight", "output_layer.weight"


def drift(rank: Rank, directory: Path, batch: Batch, planted: list[tuple[str, int]]) -> list[str]:
    """What is said of the copies after training, and again after the last bit of one weight of a rank has changed."""
    from pentad.trainers.megatron.replicas import ReplicaError, check_replicas

    settings = TrainerSettings(total_steps=3, optimizer=OptimizerSettings(lr=1e-2))
    trainer = rank.trainer(directory, settings, optimizer_steps=3)
    tied = trainer.mapping.facts.tied
    for _ in range(2):
        trainer.forward_backward(batch, plan_microbatches(batch.lengths, rank.layout.data, 64), SFTLoss(SFTSettings()))
        trainer.step()
    said = []
    for name, number in [("", 0), *planted]:
        mine = dict(trainer.parameters()).get(name) if rank.number == number else None
        if mine is not None:
            bits = mine.data.view(torch.int32).view(-1)
            bits[-1] ^= 1
        try:
            check_replicas(trainer.parameters(), trainer.groups, tied=tied)
            said.append("")
        except ReplicaError as error:
            said.append(str(error).partition(": ")[2])
        if mine is not None:
            bits[-1] ^= 1
    return said


CASES = [
    # Of each planted drift, what each rank says.
    (
        "qwen3",
        Layout(tensor=2),
        [(NORM, 1), (PROJECTION, 1)],
        [[f"{NORM} on tensor-parallel ranks 0, 1"] * 2, [""] * 2],
    ),
    ("qwen2", Layout(data=2), [(PROJECTION, 0)], [[f"{PROJECTION} on data-parallel ranks 0, 1"] * 2]),
    (
        "qwen3_moe",
        Layout(data=2, expert=2),
        [(ROUTER, 1), (EXPERTS, 1)],
        [[f"{ROUTER} on data-parallel ranks 0, 1"] * 2, [""] * 2],
    ),
    (
        "qwen3_moe",
        Layout(data=4, expert=2),
        [(EXPERTS, 3)],
        [["", f"{EXPERTS} on expert-data-parallel ranks 1, 3"] * 2],
    ),
    ("llama", Layout(data=3), [(NORM, 1)], [[f"{NORM} on data-parallel ranks 0 = 2, 1"] * 3]),
    (
        "llama_tied",
        Layout(pipeline=2),
        [(COPY, 1)],
        [[f"{EMBEDDING} on embedding ranks 0, 1", f"{COPY} on embedding ranks 0, 1"]],
    ),
    ("qwen3", Layout(context=2), [(EMBEDDING, 1)], [[f"{EMBEDDING} on data-parallel ranks 0, 1"] * 2]),
]


@pytest.mark.parametrize(
    ("family", "layout", "planted", "expected"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES]
)
def test_drift_is_named_with_its_ranks(family, layout, planted, expected, tiny_models):
    batch = ragged_batch(lengths=[(2, 3), (1, 4), (3, 3), (2, 2), (4, 1), (1, 2)])
    answers = run_on(layout, drift, tiny_models(family).directory, batch, planted)
    assert [answer[0] for answer in answers] == [""] * layout.world, "copies differ after training"
    for number, said in enumerate(expected, start=1):
        assert [answer[number] for answer in answers] == said
