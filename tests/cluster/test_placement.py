"""Where devices go on clusters of several machines; the last test has a real Ray cluster that pretends to have GPUs."""

import subprocess
import sys

import pytest
from ranks import Rank, run_on

from pentad.cluster.placement import _groups, crossing_groups, place
from pentad.errors import UserError
from pentad.layout import Layout, parse_allocation


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
        # The GPUs of an engine are on one machine.
        ("vllm:d2t2+megatron:d1", "aaabb", [0, 1, 3, 4, 2]),
        ("vllm:d2t2|megatron:p4", "abba", [0, 3, 1, 2]),
        # Whole groups for a critic of its own come after the policy's, and before the engines.
        ("hf:d1+megatron[critic]:t2+megatron:t2", "aaabb", [2, 3, 4, 0, 1]),
    ],
)
def test_trainer_ranks_fill_machines(allocation: str, machines: str, expected: list[int]) -> None:
    assert place(parse_allocation(allocation), machines) == expected


@pytest.mark.parametrize(
    ("allocation", "machines", "cause", "fix"),
    [
        ("hf:d1+megatron:t4", "aabba", "groups of t4 would cross machines (of 3, 1 GPUs for the trainer)", "use t1"),
        ("hf:d2+megatron:t4", "aabbcc", "groups of t4 would cross machines (of 2, 2 GPUs for the trainer)", "use t2"),
        ("vllm:t2+megatron:d1", "abc", "an engine of t2 would be on more than one machine", "a smaller t"),
        (
            "hf:d1+megatron:t2+megatron[critic]:t2",
            "aaabc",
            "groups of t2 would cross machines (of 1, 1 GPUs for the critic)",
            "use t1",
        ),
        ("hf:d4|megatron:(attn:d4|ffn:t4)", "aabb", "groups of x4 would cross machines", "use x2"),
    ],
)
def test_groups_that_would_cross_machines(allocation: str, machines: str, cause: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        place(parse_allocation(allocation), machines)
    assert cause in str(caught.value)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("allocation", "machines", "groups"),
    [
        ("megatron:t2c2", "aabb", "(c2) cross machines: ranks 0, 2 on 2 machines; ranks 1, 3 on 2 machines"),
        ("megatron:d2c2", "aabb", None),
        ("megatron:d4e4", "aabb", "(e4) cross machines: ranks 0, 1, 2, 3 on 2 machines"),
        ("megatron:d4e2", "aabb", None),
        (
            "megatron:(attn:d4t2|ffn:e4t2)",
            "aaaabbbb",
            "(e4) cross machines: ranks 0, 2, 4, 6 on 2 machines; ranks 1, 3, 5, 7 on 2 machines",
        ),
        ("megatron:p2d2e2", "aabb", None),
        (
            "megatron:d12e2",
            "abcabcabcabc",
            "(e2) cross machines: ranks 0, 1 on 2 machines; ranks 2, 3 on 2 machines; ranks 4, 5 on 2 machines; "
            "ranks 6, 7 on 2 machines; and 2 more",
        ),
    ],
)
def test_groups_that_may_cross_machines_are_named(allocation: str, machines: str, groups: str | None) -> None:
    messages = crossing_groups(parse_allocation(allocation).trainer, machines)
    assert len(messages) == (groups is not None)
    assert not groups or groups in messages[0]


def ranks_of_megatron(rank: Rank) -> list[list[list[int]]]:
    from megatron.core.parallel_state import RankGenerator

    dense = RankGenerator(tp=2, ep=1, dp=2, pp=2, cp=3, order="tp-cp-ep-dp-pp")
    experts = RankGenerator(tp=2, ep=3, dp=2, pp=2, cp=1, order="tp-cp-ep-dp-pp")
    return [dense.get_ranks("cp"), experts.get_ranks("ep")]


def test_groups_are_numbered_as_megatron_does() -> None:
    ((context, expert),) = run_on(Layout(), ranks_of_megatron)
    assert [list(group) for group in _groups(24, 3, 2)] == context == expert


_SCRIPT = """
import asyncio, os
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

    def gpus(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def environment(self):
        return [os.environ.get(name) for name in ("NCCL_DEBUG", "HF_HUB_OFFLINE", "GIVEN", "PASSED_ON", "OWN")]

# The machines' processes do not inherit these.
os.environ |= {"NCCL_DEBUG": "WARN", "HF_HUB_OFFLINE": "1", "PASSED_ON": "secret", "OWN": "no"}
allocation = parse_allocation("hf:d2+megatron:t4")
with Cluster(RaySettings(address=machines.address, env={"GIVEN": 5, "PASSED_ON": None}), allocation) as cluster:
    trainer = cluster.spawn(Where, "trainer rank", allocation.trainer, 60)
    engines = cluster.spawn(Where, "engine", allocation.rollout, 60)
    where = [asyncio.run(gang.call("machine", phase="asking")) for gang in (trainer, engines)]
    print([len(set(machines)) for machines in where], len({*where[0], *where[1]}))
    print(asyncio.run(engines.call("environment", phase="asking"))[1], cluster.notes)
allocation = parse_allocation("vllm:d2t2+megatron:d1")
with Cluster(RaySettings(address=machines.address), allocation) as cluster:
    engines = cluster.spawn(Where, "engine", allocation.rollout, 60, devices_each=2)
    own = asyncio.run(engines.call("gpus", phase="asking"))
    further = asyncio.run(engines.reserved.call("gpu", phase="asking"))
    machines_of = asyncio.run(engines.call("machine", phase="asking"))
    print("GPUs of engines:", len(own), len({(m, gpu) for m, a, b in zip(machines_of, own, further) for gpu in (a, b)}))
with Cluster(RaySettings(address=machines.address), parse_allocation("megatron:d1c6")) as cluster:
    print(cluster.notes)
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
    assert "['WARN', '1', '5', 'secret', None] []" in lines, done.stdout
    assert "GPUs of engines: 2 4" in lines, done.stdout
    assert "context-parallel groups (c6) cross machines" in done.stdout
    assert "ranks 0, 1, 2, 3, 4, 5 on 2 machines" in done.stdout
    assert "groups of t5 would cross machines" in done.stdout
