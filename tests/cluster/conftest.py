"""A Ray cluster with small actors, started once for all tests of this folder."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from quickstart import quickstart
from ray_actors import Server, Worker

from pentad.cluster.cluster import Cluster
from pentad.cluster.gang import Gang
from pentad.cluster.mailbox import Mailbox
from pentad.config.schema.ray import RaySettings
from pentad.layout import parse_allocation

__all__ = ["gangs", "quickstart"]


@dataclass(frozen=True)
class Gangs:
    """Two workers as trainer ranks, a server as rollout engine, and a mailbox."""

    cluster: Cluster
    trainers: Gang
    engines: Gang
    mailbox: Gang


@pytest.fixture(scope="package")
def gangs() -> Iterator[Gangs]:
    """No test may end one of them."""
    with Cluster(RaySettings(), parse_allocation("hf:d1+megatron:p2")) as cluster:
        gangs = Gangs(
            cluster,
            cluster.spawn(Worker, "trainer rank", cluster.allocation.trainer, 60.0),
            cluster.spawn(Server, "rollout engine", cluster.allocation.rollout, 60.0),
            cluster.spawn_one(Mailbox, "weight mailbox", 60.0),
        )
        asyncio.run(cluster.processes.started(120.0))
        yield gangs
