"""Fixtures of tests that run real models on real ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tiny import TinyModel


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], TinyModel]":
    """Small transformers models by name (`tiny.DENSE`, `tiny.MIXTURE`, `tiny.ROPE`), made and saved once a session."""
    from tiny import tiny_model

    folder: Path = tmp_path_factory.mktemp("models")
    return lambda name: tiny_model(name, folder)
