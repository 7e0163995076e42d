"""What vLLM cannot do is refused before anything is started."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pentad.config.loading.load import load_settings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.run import sources

RUN = "experiment: {name: x}\nmodel: {path: m}\ndata: {train: t.jsonl}\nreward: {name: exact}\ntrainer: {total_steps: 2}\n"


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    """Checks a run with some overrides."""
    file = tmp_path / "run.yaml"
    file.write_text(RUN)

    def checked(*overrides: str, allocation: str = "vllm:d1|megatron:d1") -> None:
        settings = load_settings(file, [f"allocation={allocation}", *overrides]).settings
        sources._check_vllm(settings, parse_allocation(allocation))

    return checked


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "require", lambda *arguments: None)


def test_without_the_package(check: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="needs the package vllm") as caught:
        check()
    assert "generate with hf:" in caught.value.fix


def test_what_it_can_do_passes(check: Callable[..., None], installed: None) -> None:
    check("rollout.vllm={enforce_eager: true}", "rollout.temperature=0.7")
    check(allocation="hf:d1|megatron:d1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.vllm={quantization: fp8}", "rollout.vllm.quantization is not supported"),
        ("rollout.vllm={dtype: half}", "rollout.vllm.dtype is decided by rollout.dtype"),
        ("rollout.temperature=3.0", "rollout.temperature is 3"),
        ("rollout.dtype=fp32", "rollout.dtype is fp32"),
    ],
)
def test_what_it_cannot_do_is_refused(check: Callable[..., None], installed: None, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(override)
    assert caught.value.fix


def test_its_settings_are_not_ignored(check: Callable[..., None]) -> None:
    with pytest.raises(UserError, match="generates without vLLM"):
        check("rollout.vllm={enforce_eager: true}", allocation="hf:d1|megatron:d1")
