"""Where devices go on clusters of several machines; the last test has a real Ray cluster that pretends to have GPUs."""

import subprocess
import sys

import pytest

from pentad.cluster.placement import place
from pentad.errors import UserError
from pentad.layout import parse_allocation


@pytest.mark.parametrize(
    ("allocation", "machines", "expected"),
    [
        ("hf:d1+megatron:t2", "aaa", [2, 0, 1]),
        ("hf:d4+megatron:t4", "aaaabbbb", [4, 5, 6, 7, 0, 1, 2, 3]),
        ("hf:d2+megatron:t4", "aabbbb", [0, 1, 2, 3, 4, 5]),
        ("hf:d2+megatron:d2t2", "abbabb", [0, 3, 1, 2, 4, 5]),
        # Ray numbers bundles without regard to machines.
        ("hf:d4|megatron:t2p2", "abab", [0, 2, 1, 3]),
        ("megatron:t2+hf:d1", "aba", [0, 2, 1]),
        # What makes no whole group on a machine is left to the engines.
        ("hf:d1+megatron:d2t2", "aaabb", [2, 0, 1, 3, 4]),
        ("hf:d2+megatron:(attn:d2t2|ffn:t4)", "aaaaab", [4, 5, 0, 1, 2, 3]),
    ],
)
def test_trainer_ranks_fill_machines(allocation: str, machines: str, expected: list[int]) -> None:
    assert place(parse_allocation(allocation), machines) == expected


@pytest.mark.parametrize(
    ("allocation", "machines", "cause", "fix"),
    [
        ("hf:d1+megatron:t4", "aabba", "groups of t4 would cross machines (of 3, 1 GPUs for the trainer)", "use t1"),
        ("hf:d2+megatron:t4", "aabbcc", "groups of t4 would cross machines (of 2, 2 GPUs for the trainer)", "use t2"),
        ("hf:d4|megatron:(attn:d4|ffn:t4)", "aabb", "groups of x4 would cross machines", "use x2"),
    ],
)
def test_groups_that_would_cross_machines(allocation: str, machines: str, cause: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        place(parse_allocation(allocation), machines)
    assert cause in str(caught.value)
    assert fix in caught.value.fix


_SCRIPT = """
import asyncio
import ray
from ray.cluster_utils import Cluster as Machines
from pentad.config.schema.ray import RaySettings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.cluster.cluster import Cluster
from pentad.cluster.process import GROUPS, Process

machines = Machines(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2})
machines.add_node(num_cpus=1, num_gpus=4)

@ray.remote(concurrency_groups=GROUPS)
class Where(Process):
    def machine(self):
        return ray.get_runtime_context().get_node_id()

allocation = parse_allocation("hf:d2+megatron:t4")
with Cluster(RaySettings(address=machines.address), allocation) as cluster:
    trainer = cluster.spawn(Where, "trainer rank", allocation.trainer, 60)
    engines = cluster.spawn(Where, "engine", allocation.rollout, 60)
    where = [asyncio.run(gang.call("machine", phase="asking")) for gang in (trainer, engines)]
    print([len(set(machines)) for machines in where], len({*where[0], *where[1]}))
try:
    Cluster(RaySettings(address=machines.address), parse_allocation("hf:d1+megatron:t5")).__enter__()
except UserError as error:
    print(error)
"""


def test_on_two_machines() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "[1, 1] 2" in lines, done.stdout
    assert "groups of t5 would cross machines" in done.stdout
