"""vLLM's own loaders put every tensor where the certificate finds it: fused, stacked, split, replicated and padded."""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "harness" / "vllm_loaders.py"
ADAPTED = ["adapted", "llama", "adapted", "qwen2"]


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or torch.cuda.is_available(), reason="needs vllm, and no GPU"
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_family_is_certified(ranks: int, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    commands = [[sys.executable, str(SCRIPT), str(rank), str(ranks), port, str(tmp_path)] for rank in range(ranks)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    for process in running:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]
        assert output.split() == ["certified", "qwen3_moe", "certified", "llama", "certified", "qwen2", *ADAPTED]
