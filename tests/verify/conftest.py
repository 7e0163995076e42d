"""One process of each built-in model, computed once a session; layouts are compared with it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from pentad.verify.models import tiny_config, write_random_model
from pentad.verify.verification import Verification

_DEADLINE_S = 90.0


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a built-in model by name."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def make(family: str) -> Path:
        write_random_model(tiny_config(family), folder / family, torch.float32)
        return folder / family

    return make


@pytest.fixture(scope="session")
def verification(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], Verification]]:
    """The verification of a built-in model in fp32 by name."""
    made: list[Verification] = []

    @cache
    def make(family: str) -> Verification:
        made.append(Verification(checkpoint(family), deadline_s=_DEADLINE_S))
        # So small a model has its gradient norm to more digits than a real one.
        made[-1].bounds = replace(made[-1].bounds, grad_norm=1e-5)
        return made[-1]

    yield make
    for one in made:
        one.close()
