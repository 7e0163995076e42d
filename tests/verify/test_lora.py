"""Adapters compute the same on every layout; faults of adapters that other trainers have shipped are found and named.

`make verify` has all small layouts of every family; here are few, with every kind of split of an adapter.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

import pentad.trainers.megatron.gradients as gradients
import pentad.trainers.megatron.lora as lora
import pentad.trainers.megatron.trainer as trainer
from pentad.layout import Layout
from pentad.trainers.megatron.lora import Adapter
from pentad.trainers.megatron.trainer import Trainer
from pentad.verify.models import lora_of_everything
from pentad.verify.verification import Verification
from pentad.weights.mapping import WeightMapping

RANK = 4
T2, T2X2, D2, E2 = Layout(tensor=2), Layout(tensor=2, expert_tensor=2), Layout(data=2), Layout(data=2, expert=2)


@pytest.fixture(scope="module")
def adapted(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], Verification]]:
    """The verification of a built-in model with adapters beside all its modules."""
    made: list[Verification] = []

    @cache
    def make(family: str) -> Verification:
        made.append(Verification(checkpoint(family), deadline_s=90.0, lora=lora_of_everything(RANK)))
        made[-1].bounds = replace(made[-1].bounds, grad_norm=1e-5)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("family", ["qwen2", "qwen2_moe", "mixtral"])
def test_one_process_agrees_with_transformers(family, adapted):
    report = adapted(family).check_transformers()
    assert report.passed, report.problems


CASES = [
    ("qwen2", Layout(tensor=4)),  # more ranks than key/value heads
    ("llama_tied", Layout(pipeline=2, virtual=2)),
    ("qwen3_moe", T2X2),
    ("qwen3_moe", E2),
    ("qwen2_moe", Layout(tensor=2, expert=2, pipeline=2)),
    ("mixtral", Layout(context=2, expert_tensor=2)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_layout_agrees(case, adapted):
    family, layout = case
    report = adapted(family).check(layout)
    assert report.passed, report.problems


def replicated_matrix_not_reduced(patch: pytest.MonkeyPatch) -> None:
    right = lora._mark

    def unmarked(adapter: Adapter, *rest: Any) -> None:
        right(adapter, *rest)
        adapter.A.sequence_parallel = False

    patch.setattr(lora, "_mark", unmarked)


def expert_copies_not_reduced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gradients, "reduce_expert_copies", lambda *rest: None)


def expert_adapters_swapped(patch: pytest.MonkeyPatch) -> None:
    right = Trainer.load

    def load(self: Trainer, *sources: Any) -> None:
        right(self, *sources)
        for name, parameter in self.parameters():
            if name.endswith("experts.lora2.B"):
                parameter.data.copy_(parameter.data.flip(0))

    patch.setattr(Trainer, "load", load)


def gate_and_up_exchanged(patch: pytest.MonkeyPatch) -> None:
    right = lora._labels

    def labels(mapping: WeightMapping, rule: Any, *rest: Any) -> Tensor:
        found = right(mapping, rule, *rest)
        return 1 - found if rule.megatron.endswith("mlp.linear_fc1.weight") else found

    patch.setattr(lora, "_labels", labels)


def adapter_outside_the_optimizer(patch: pytest.MonkeyPatch) -> None:
    right = Trainer.step

    def step(self: Trainer) -> dict[str, float]:
        held = dict(self.parameters())["decoder.layers.1.self_attention.linear_proj.lora.B"]
        before = held.detach().clone()
        metrics = right(self)
        held.data.copy_(before)
        return metrics

    patch.setattr(Trainer, "step", step)


def scale_applied_twice(patch: pytest.MonkeyPatch) -> None:
    right = Adapter.__init__

    def twice(self: Adapter, *rest: Any) -> None:
        right(self, *rest)
        self.scale *= self.scale

    patch.setattr(Adapter, "__init__", twice)


def dropout_on_in_evaluation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Adapter, "inner", lambda self, x: torch.nn.functional.dropout(x, 0.1, training=True))


def base_not_frozen(patch: pytest.MonkeyPatch) -> None:
    right = lora.attach

    def attach(chunks: Any, *rest: Any) -> Any:
        made = right(chunks, *rest)
        for chunk in chunks:
            chunk.module.requires_grad_(True)
        return made

    patch.setattr(trainer, "attach", attach)


def experts_of_one_rank_sent(patch: pytest.MonkeyPatch) -> None:
    right = WeightMapping._export_experts

    def export(self: WeightMapping, *rest: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in right(self, *rest):
            if any(f".experts.{number}." in name for number in self._local_experts()):
                yield name, tensor

    patch.setattr(WeightMapping, "_export_experts", export)


def adapters_not_in_the_data_parallel_buffers(patch: pytest.MonkeyPatch) -> None:
    """Gradients stay those of each replica, as where adapters are made after wrapping."""
    patch.setattr(DistributedDataParallel, "finish_grad_sync", lambda self, *rest, **named: None)


# fault -> model, layout, and what must be named: a pattern for each line of the report that must be there.
FAULTS = {
    replicated_matrix_not_reduced: ("qwen2", T2, [r"gradients: .*self_attn\.[qkv]_proj\.lora_A"]),
    expert_copies_not_reduced: ("qwen3_moe", T2X2, [r"gradients: .*mlp\.experts\.\d\.\w+_proj\.lora_[AB]"]),
    expert_adapters_swapped: ("qwen3_moe", E2, [r"export: \S+experts\.\d\.down_proj\.lora_B", "log-probs: "]),
    gate_and_up_exchanged: ("qwen2", T2, ["log-probs: ", r"gradients: .*mlp\.(gate|up)_proj\.lora_[AB]"]),
    adapter_outside_the_optimizer: (
        "qwen2",
        D2,
        [r"weights: off by \S+, bound \S+ model\.layers\.1\.self_attn\.o_proj\.lora_B\.weight \("],
    ),
    scale_applied_twice: ("qwen2", T2, ["log-probs: ", r"gradients: .*lora_[AB]"]),
    dropout_on_in_evaluation: ("qwen2", T2, ["log-probs: "]),
    base_not_frozen: ("qwen2", D2, [r"frozen: \S+\.weight has changed", r"gradients: \S+ is not in the checkpoint"]),
    experts_of_one_rank_sent: ("qwen3_moe", E2, [r"export: a rank of stage 0 did not get \S+experts\.\d\.\S+"]),
    adapters_not_in_the_data_parallel_buffers: ("qwen2", D2, [r"gradients: .*lora_[AB]", r"weights: .*lora_[AB]"]),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_found(fault, adapted, monkeypatch):
    family, layout, expected = FAULTS[fault]
    compared = adapted(family)
    fault(monkeypatch)
    report = compared.check(layout)
    assert not report.error, report.error
    assert not report.passed
    for pattern in expected:
        assert any(re.search(pattern, line) for line in report.problems), f"{pattern} is not in {report.problems}"
