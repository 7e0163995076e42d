"""Where the fast versions are tested: on the GPU, or Triton's kernels in its interpreter (see tests/conftest.py)."""

from pathlib import Path

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Before the selection by markers.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        if torch.cuda.is_available() and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
        elif item.get_closest_marker("gpu"):
            item.add_marker(missing)
