"""Workers run in the driver's environment, however the driver was started, with the variables that are set for them."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import ray
from quickstart import REPOSITORY

from pentad.cluster.cluster import Cluster
from pentad.cluster.environment import process_environment
from pentad.errors import UserError

UV = REPOSITORY / ".cache" / "bin" / "uv"

_SCRIPT = """
import asyncio, sys
from pentad.config.schema.ray import RaySettings
from pentad.layout import parse_allocation
from pentad.cluster.cluster import Cluster
from pentad.cluster.process import GROUPS, Process
import ray

@ray.remote(concurrency_groups=GROUPS)
class Where(Process):
    def environment(self):
        return sys.prefix

allocation = parse_allocation("megatron:d1")
with Cluster(RaySettings(address=sys.argv[1]), allocation) as cluster:
    gang = cluster.spawn(Where, "rank", allocation.trainer, 60)
    print(asyncio.run(gang.call("environment", phase="asking")) == [sys.prefix])
"""


@pytest.mark.skipif(not UV.exists(), reason="the environment was not made by scripts/bootstrap.sh")
def test_started_by_uv_run(beside: Callable[[str], Cluster]) -> None:
    address = ray.get_runtime_context().gcs_address
    command = [UV, "run", "--no-sync", "python", "-c", _SCRIPT, address]
    environment = {**os.environ, "UV_PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.stdout.strip() == "True", done.stderr


def test_a_variable_that_has_no_value_is_refused() -> None:
    driver = {"HF_HOME": "/models", "KEY": "abc", "PATH": "/bin"}
    assert process_environment({"KEY": None, "A": "1"}, driver, remote=False) == {"KEY": "abc", "A": "1"}
    assert process_environment({"HF_HOME": "/other"}, driver, remote=True) == {"HF_HOME": "/other"}
    assert process_environment({}, driver, remote=True) == {"HF_HOME": "/models"}
    with pytest.raises(UserError, match=r"ray\.env\.GONE is null") as caught:
        process_environment({"GONE": None}, driver, remote=True)
    assert "export GONE" in caught.value.fix
