"""Where the fast versions are tested: on the GPU, or Triton's kernels in its interpreter."""

import os

import pytest
import torch

# Read when a kernel is defined: without a GPU, Triton's kernels run on CPU tensors, step by step.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(missing)
