"""A critic computes the same on every layout; faults of its head are found and named."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pentad.trainers.megatron.build as build
import pentad.trainers.megatron.outputs as outputs
from pentad.layout import Layout
from pentad.trainers.megatron.value_head import ValueHead
from pentad.verify.models import tiny_config, write_random_model
from pentad.verify.verification import Verification
from pentad.weights.critic import critic_config

T2, E2 = Layout(tensor=2), Layout(data=2, expert=2)


@pytest.fixture(scope="module")
def critics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Verification]]:
    made: list[Verification] = []
    folder: Path = tmp_path_factory.mktemp("critics")

    @cache
    def make(family: str) -> Verification:
        write_random_model(critic_config(tiny_config(family)), folder / family, torch.float32)
        made.append(Verification(folder / family, deadline_s=90.0))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("family", ["llama_tied", "qwen2_moe"])
def test_one_process_agrees_with_transformers(family, critics):
    report = critics(family).check_transformers()
    assert report.passed, report.problems
    assert set(report.quantities) == {"values", "loss", "gradient norm", "gradients"}


CASES = [
    *[("llama_tied", Layout(**{name: 2})) for name in ("tensor", "pipeline", "context", "data")],
    ("llama_tied", Layout(tensor=2, pipeline=2)),
    ("llama_tied", Layout(pipeline=2, virtual=2)),
    ("llama_tied", Layout(tensor=2, context=2)),
    ("qwen2_moe", E2),
    ("qwen2_moe", Layout(tensor=2, expert=2)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_layout_agrees(case, critics):
    family, layout = case
    report = critics(family).check(layout)
    assert report.passed, report.problems


def gathered_gradient_is_summed(patch: pytest.MonkeyPatch) -> None:
    right = outputs.gather_from_sequence_parallel_region
    patch.setattr(outputs, "gather_from_sequence_parallel_region", lambda x, **named: right(x, group=named["group"]))


def head_is_not_reduced(patch: pytest.MonkeyPatch) -> None:
    right = ValueHead.__init__

    def unmarked(self: ValueHead, hidden_size: int, **named: Any) -> None:
        right(self, hidden_size, **{**named, "sequence_parallel": False})

    patch.setattr(ValueHead, "__init__", unmarked)


def value_of_the_token_itself(patch: pytest.MonkeyPatch) -> None:
    right = ValueHead.forward
    patch.setattr(ValueHead, "forward", lambda self, hidden: right(self, hidden).roll(-1))


def head_is_outside_of_the_model(patch: pytest.MonkeyPatch) -> None:
    class Hidden(ValueHead):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden.detach())

    patch.setattr(build, "ValueHead", Hidden)


FAULTS = {
    gathered_gradient_is_summed: (T2, "gradients: "),
    head_is_not_reduced: (T2, "score.weight"),
    value_of_the_token_itself: (Layout(data=2), "values: "),
    head_is_outside_of_the_model: (Layout(data=2), "gradients: "),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_found(fault, critics, monkeypatch):
    layout, named = FAULTS[fault]
    compared = critics("llama_tied")
    fault(monkeypatch)
    report = compared.check(layout)
    assert not report.error, report.error
    assert any(named in line for line in report.problems), report.problems
