"""What vLLM cannot do is refused before anything is started."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pentad.config.loading.load import load_settings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.run.vllm_checks import check_vllm

RUN = """
experiment: {name: x}
model: {path: m}
data: {train: t.jsonl}
reward: {name: exact}
trainer: {total_steps: 2}
"""
VLLM = "vllm:d1|megatron:d1"


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., list[UserError]]:
    """What is wrong with a run with some overrides."""
    file = tmp_path / "run.yaml"
    file.write_text(RUN)

    def found(allocation: str, *overrides: str) -> list[UserError]:
        return list(check_vllm(load_settings(file, overrides).settings, parse_allocation(allocation)))

    return found


def test_what_it_can_do_passes(problems: Callable[..., list[UserError]]) -> None:
    assert problems(VLLM, "rollout.vllm={enforce_eager: true}", "rollout.temperature=0.7") == []
    assert problems("hf:d1|megatron:d1") == []


@pytest.mark.parametrize(
    ("override", "cause"),
    [
        ("rollout.vllm={quantization: fp8}", "rollout.vllm.quantization is not supported"),
        ("rollout.vllm={dtype: half}", "rollout.vllm.dtype is decided by rollout.dtype"),
        ("rollout.temperature=3.0", "rollout.temperature is 3"),
        ("rollout.dtype=fp32", "rollout.dtype is fp32"),
    ],
)
def test_what_it_cannot_do_is_refused(problems: Callable[..., list[UserError]], override: str, cause: str) -> None:
    (problem,) = problems(VLLM, override)
    assert cause in problem.cause
    assert problem.fix


def test_its_settings_are_not_ignored(problems: Callable[..., list[UserError]]) -> None:
    (problem,) = problems("hf:d1|megatron:d1", "rollout.vllm={enforce_eager: true}")
    assert "generates without vLLM" in problem.cause


def test_with_an_engine_of_the_users_they_would_not_be_read(problems: Callable[..., list[UserError]]) -> None:
    with pytest.raises(UserError, match=r"rollout\.vllm \(command line\) is set, but rollout\.engine names") as refused:
        problems(VLLM, "rollout.engine=mine:Engine", "rollout.vllm={enforce_eager: true}")
    assert "remove rollout.vllm" in refused.value.fix
