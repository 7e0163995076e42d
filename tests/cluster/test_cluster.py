"""Clusters that are there and do not let a run in, and machines that do not see its files."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pentad.cluster.cluster import Cluster
from pentad.cluster.engine_actor import EngineActor
from pentad.cluster.process import check_visible
from pentad.cluster.ray_session import RaySession
from pentad.cluster.role_model import RoleModel
from pentad.cluster.trainer_actor import TrainerActor
from pentad.config.schema.ray import RaySettings
from pentad.config.schema.rollout import RolloutSettings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.run.tokenizer import tokenizer_path

_JOIN = """
import sys
from pentad.config.schema.ray import RaySettings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.cluster.cluster import Cluster

try:
    with Cluster(RaySettings(address=sys.argv[1]), parse_allocation("megatron:d1")):
        print("joined")
except UserError as error:
    print(error)
"""
_HEAD = """
import sys, time
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False)
print("at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def protected_cluster() -> Iterator[str]:
    """The address of a cluster that asks for a token."""
    head = subprocess.Popen(
        [sys.executable, "-c", _HEAD],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdout is not None
    address = next((line.split()[1] for line in head.stdout if line.startswith("at ")), None)
    assert address is not None
    yield address
    started = psutil.Process(head.pid).children(recursive=True)
    head.communicate()
    psutil.wait_procs(started, timeout=20)


def _join(address: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", _JOIN, address],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_a_cluster_that_asks_for_a_token(protected_cluster: str) -> None:
    said = _join(protected_cluster)
    assert f"the Ray cluster {protected_cluster} asks for a token" in said
    assert "export RAY_AUTH_MODE=token" in said
    assert _join(protected_cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64) == "joined\n"


def test_a_machine_that_does_not_see_the_model(tmp_path: Path) -> None:
    check_visible("model.path", tmp_path)
    gone = tmp_path / "gone"
    engine = EngineActor.__ray_metadata__.modified_class(0, 1)
    with pytest.raises(UserError, match=rf"model\.path: machine \S+ does not see {gone}") as caught:
        engine.build("hf", gone, str(gone), RolloutSettings(), 0, tmp_path, 64, False, 60.0, None, 1, [], 1)
    assert "all machines share" in caught.value.fix
    with pytest.raises(UserError, match=r"model\.tokenizer: machine"):
        engine.build("hf", tmp_path, str(gone), RolloutSettings(), 0, tmp_path, 64, False, 60.0, None, 1, [], 1)
    with pytest.raises(UserError, match=r"model\.path: machine"):
        roles = {"policy": RoleModel(gone, "model.path", None, None)}
        TrainerActor.__ray_metadata__.modified_class(0, 1).build("", None, None, roles, *[None] * 3)


def test_paths_mean_the_same_in_every_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    assert tokenizer_path("words", tmp_path) == str(tmp_path / "words")
    assert tokenizer_path(None, tmp_path) == str(tmp_path)
    assert tokenizer_path("owner/name", tmp_path) == "owner/name"


def test_ray_that_does_not_start_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(session: RaySession) -> None:
        raise Exception("The current node timed out during startup. This could happen\nbecause")

    monkeypatch.setattr(RaySession, "start", late)
    monkeypatch.setattr(RaySession, "end", lambda session: None)
    # Other tests of this folder have a cluster in this process.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"Ray did not start: The current node timed out during startup\.") as caught:
        Cluster(RaySettings(), parse_allocation("megatron:d1")).__enter__()
    assert "less busy" in caught.value.fix
