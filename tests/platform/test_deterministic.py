"""What `megatron.use_deterministic_algorithms` switches on, and where."""

import subprocess
import sys

import pytest

from pentad.config.schema.megatron import MegatronSettings
from pentad.layout import Layout
from pentad.verify.verification import Verification

_SCRIPT = """
import os, torch
from pentad.platform.deterministic import make_deterministic
make_deterministic()
print(torch.are_deterministic_algorithms_enabled(), os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["NCCL_ALGO"])
"""


def test_of_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["True", ":4096:8", "Ring"], done.stderr


@pytest.mark.parametrize("asked", [False, True])
def test_of_every_rank_if_it_is_asked_for(asked: bool, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import pentad.verify.rank as rank
    from pentad.verify.models import tiny_config, write_random_model

    seen = tmp_path / "seen"
    monkeypatch.setattr(rank, "make_deterministic", lambda: seen.open("a").write("x"))
    torch.set_num_threads(1)  # ranks are forked from here
    write_random_model(tiny_config("llama", layers=1), tmp_path / "model", torch.float32)
    with Verification(
        tmp_path / "model", megatron=MegatronSettings(use_deterministic_algorithms=asked)
    ) as verification:
        assert verification.check(Layout(tensor=2)).passed
    assert seen.exists() is asked
    assert not asked or seen.read_text() == "xxx"  # one process, then two
