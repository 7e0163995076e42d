"""Fixtures of tests that run real models on real ranks, and the real command."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from quickstart import mixture, pentad, quickstart

__all__ = ["mixture", "pentad", "quickstart"]

if TYPE_CHECKING:
    from tiny import TinyModel

# Folders of which all tests share a costly fixture.
_SHARING = ("gpu", "cluster", "verify", "trainers")
# Whole runs: two of them at a time would wait for each other's processes.
_RUNS = {"pentad", "gangs", "beside", "parts"}

# Read when torch is imported. The models are too small for threads to be of use; a process with threads must not fork;
# and threads that wait for each other take the processor from ranks.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Read when Ray is imported, which a test may do before Pentad does; see `pentad.cluster`.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Read by the raylets of tests: otherwise a test that runs beside takes the processor from a run's actors.
os.environ.setdefault("RAY_worker_niceness", "0")
# Read when Triton is imported, by whichever test does so first: without a GPU, its kernels run on CPU tensors.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], TinyModel]":
    """Small transformers models by name (`tiny.DENSE`, `tiny.MIXTURE`, `tiny.ROPE`), made and saved once a session."""
    from tiny import tiny_model

    folder: Path = tmp_path_factory.mktemp("models")
    return lambda name: tiny_model(name, folder)


def pytest_configure(config: pytest.Config) -> None:
    """Take the usual meaning of signals back: continuous integration may start the tests with Ctrl-C ignored."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of pytest-xdist: tests that start runs follow each other, and begin first.

    What shares costly fixtures stays in one process; of all other tests a file does.
    """
    if not hasattr(config, "workerinput"):
        return
    order: dict[pytest.Item, int] = {}
    for item in items:
        folder = item.path.parent.name
        if _RUNS.intersection(getattr(item, "fixturenames", ())) or folder == "cluster":
            order[item], group = 0, "runs"
        elif folder in _SHARING:
            order[item], group = 1 + _SHARING.index(folder), folder
        else:
            order[item], group = 1 + len(_SHARING), f"{folder}/{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=order.__getitem__)
