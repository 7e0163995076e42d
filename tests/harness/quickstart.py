"""Fixtures for runs of the real command on the quickstart's tiny model."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Command

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def pentad(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts the command with the given arguments (see `Command`); whatever is left of it is killed after the test."""
    commands: list[Command] = []

    def start(*arguments: str, cold: bool = False, patient: bool = False) -> Command:
        commands.append(Command(tmp_path, *arguments, cold=cold, patient=patient))
        return commands[-1]

    yield start
    for command in commands:
        command.kill()


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the quickstart's model and data, as its script writes them."""
    return _prepare(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a model of four experts."""
    return _prepare(tmp_path_factory.mktemp("mixture"), "--experts", "4")


def _prepare(folder: Path, *options: str) -> Path:
    script = REPOSITORY / "examples" / "quickstart" / "prepare.py"
    command = [sys.executable, script, "--out", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder
