"""Fixtures of tests that run real models on real ranks, and the real command."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from quickstart import mixture, pentad, quickstart

__all__ = ["mixture", "pentad", "quickstart"]

if TYPE_CHECKING:
    from tiny import TinyModel

# Folders of which all tests share something costly: they stay in one process of pytest-xdist, as do tests of a file.
_SHARING = ("gpu", "cluster", "verify", "trainers")
# Whole runs: two of them at a time would wait for each other's processes.
_RUNS = ("run/", "cli/test_bad_inputs.py")

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


def _group(nodeid: str) -> str:
    """What is done by one process of pytest-xdist, one after the other."""
    path = nodeid.partition("::")[0].removeprefix("tests/")
    if path.startswith(_RUNS):
        return "runs"
    folder = path.partition("/")[0]
    return folder if folder in _SHARING else path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of pytest-xdist: what takes longest begins first."""
    if hasattr(config, "workerinput"):
        order = {group: place for place, group in enumerate(("runs", *_SHARING))}
        items.sort(key=lambda item: order.get(_group(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups of tests by `_group`. (Groups by mark do not work with pytest 9.2 and pytest-xdist 3.8.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Grouped(config, log)
