"""Machines, token budgets and data types: refused with cause and fix."""

from dataclasses import replace

import pytest

from pentad.families.known_models import known_models
from pentad.layout import Layout
from pentad.layout.cluster_checks import (
    check_cluster,
    check_dtype,
    check_microbatches,
    check_projections,
    check_response,
    check_sequence,
)

SMALL = known_models()["Qwen/Qwen2.5-0.5B"]


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        ("bfloat16", "called bf16 here", "write bf16"),
        ("torch.float32", "called fp32 here", "write fp32"),
        ("BF16", "called bf16 here", "write bf16"),
        ("fp16", "not trained in", "use bf16"),
        ("fp8", "not trained in", "use bf16"),
        ("fp23", "there is no dtype 'fp23'", "use fp32"),
        ("blue", "there is no dtype 'blue'", "use bf16 or fp32"),
    ],
)
def test_dtype(name: str, cause: str, fix: str) -> None:
    (problem,) = check_dtype(name)
    assert cause in problem.cause and fix in problem.fix


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_known_dtypes(name: str) -> None:
    assert check_dtype(name) == []


@pytest.mark.parametrize(
    ("layout", "node", "causes", "fix"),
    [
        (Layout(tensor=16), 8, ["t16 would cross machines of 8 GPUs"], "use t8"),
        (Layout(data=4, tensor=3), 8, ["t3 would cross"], "use t2 or t4"),
        (Layout(data=4, tensor=6), 4, ["t6 would cross"], "use t4"),
        (Layout(data=16, expert_tensor=16), 8, ["x16 would cross"], "use x8"),
    ],
)
def test_cluster(layout: Layout, node: int, causes: list[str], fix: str) -> None:
    problems = check_cluster(layout, node)
    assert [cause in problem.cause for cause, problem in zip(causes, problems, strict=True)] == [True]
    assert problems[0].fix == fix


@pytest.mark.parametrize(
    "layout", [Layout(tensor=8, data=4), Layout(tensor=3), Layout(tensor=3, data=2), Layout(data=64)]
)
def test_groups_inside_a_machine(layout: Layout) -> None:
    assert check_cluster(layout, 8) == []


def test_projections() -> None:
    (problem,) = check_projections(SMALL, Layout(tensor=14))
    assert "1152 rows" in problem.cause and problem.fix == "use t2"
    assert check_projections(SMALL, Layout(tensor=2)) == []
    assert check_projections(SMALL, Layout(tensor=3)) == []  # the heads say it already


def test_lengths() -> None:
    short = replace(SMALL, max_positions=512)
    (problem,) = check_response(short, 512)
    assert "rollout.max_response_tokens is 512" in problem.cause and "made for 512 tokens" in problem.cause
    assert problem.fix == "set rollout.max_response_tokens to 511 or less"
    (problem,) = check_sequence(short, 513)
    assert "513 tokens, but the model was made for 512" in problem.cause and "512" in problem.fix
    assert check_response(short, 511) == check_sequence(short, 512) == []
    unknown = replace(SMALL, max_positions=None)
    assert check_response(unknown, 10**6) == check_sequence(unknown, 10**6) == []


def test_microbatches() -> None:
    layout = Layout(pipeline=4, virtual=2)
    (problem,) = check_microbatches(layout, 6)
    assert "groups of p4, and 6" in problem.cause and problem.fix == "use 4 or 8 microbatches, or leave v out"
    assert check_microbatches(layout, 3)[0].fix == "use 4 microbatches, or leave v out"
    assert check_microbatches(layout, 8) == check_microbatches(Layout(pipeline=4), 6) == []
