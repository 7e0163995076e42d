"""What Megatron calls CUDA is the CPU, in the threads that asked for it and nowhere else."""

import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from ranks import Rank, RankError, run_on

from pentad.layout import Layout


def look(rank: Rank) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elsewhere = []

        def other_thread() -> None:
            try:
                elsewhere.append(torch.zeros(1, device="cuda").device.type)
            except (RuntimeError, AssertionError):
                elsewhere.append("refused")

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    tensor = torch.zeros(2, device="cuda", pin_memory=True)
    return {
        "made": tensor.device.type,
        "moved": torch.zeros(2).cuda().device.type,
        "sent": torch.zeros(2).to("cuda:0").device.type,
        "type": tensor.type(),
        "backend": rank.platform.backend,
        "auto": rank.platform.dtype("auto"),
        "bf16": rank.platform.dtype("bf16"),
        "elsewhere": elsewhere,
    }


def test_cuda_means_the_cpu():
    (seen,) = run_on(Layout(), look)
    assert seen == {
        "made": "cpu",
        "moved": "cpu",
        "sent": "cpu",
        "type": "torch.cuda.FloatTensor",
        "backend": "gloo",
        "auto": torch.float32,
        "bf16": torch.bfloat16,
        "elsewhere": ["refused"],
    }


def test_asking_for_the_platform_changes_nothing():
    """In a process of its own: another test may have entered the CPU platform in this one."""
    code = (
        "import torch; from pentad.platform.device import find_platform; assert find_platform() == find_platform(); "
        "assert torch.cuda.is_available() or torch.zeros(1).type() == 'torch.FloatTensor'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


_NOT_COMPILED = """
import sys
from pentad.platform.device import enter_platform
enter_platform()
import torch
import pentad.trainers.megatron.trainer

assert "torch._dynamo" not in sys.modules, "it takes seconds to import"

def double(x):
    return 2 * x

@torch.compile(dynamic=True)
def triple(x):
    return 3 * x

assert torch.compile(double) is double
assert triple(torch.ones(1)).item() == 3.0
import torch._dynamo  # as some of transformers' models do
enter_platform()
assert double(torch.ones(1)).item() == 2.0
"""


def test_nothing_is_compiled_and_torchs_compiler_is_not_imported():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", _NOT_COMPILED], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def fail(rank: Rank) -> None:
    if rank.number == 1:
        raise ValueError("rank one is ill")
    torch.distributed.barrier()


def leave(rank: Rank) -> None:
    if rank.number == 0:
        import os

        os._exit(3)
    torch.distributed.barrier()


def hang(rank: Rank) -> None:
    threading.Event().wait()


@pytest.mark.parametrize(
    "function, message", [(fail, r"(?s)rank 1 raised.*in fail.*rank one is ill"), (leave, "rank 0 died|rank 1 raised")]
)
def test_a_failing_rank_is_named(function, message):
    with pytest.raises(RankError, match=message):
        run_on(Layout(data=2), function)


def test_ranks_that_hang_are_ended():
    with pytest.raises(RankError, match=r"ranks \[0, 1\] did not answer in time"):
        run_on(Layout(data=2), hang, deadline_s=2)
