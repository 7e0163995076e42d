"""A Ray cluster with small actors, started once for all tests of this folder."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from quickstart import quickstart
from ray_actors import Server, Worker

from pentad.cluster.cluster import Cluster
from pentad.cluster.engines import Engines
from pentad.cluster.gang import Gang
from pentad.cluster.mailbox import Mailbox
from pentad.cluster.object_store import ObjectStore, StoreTransport
from pentad.cluster.trainers import Trainers
from pentad.config.schema.ray import RaySettings
from pentad.config.schema.run import RunSettings
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
def beside() -> Iterator[Callable[[str], Cluster]]:
    """Gives clusters of an allocation, each with its own processes, in the one Ray of these tests.

    A process of one may fail without those of another. None of them is to be entered or closed.
    """
    with Cluster(RaySettings(), parse_allocation("hf:d1+megatron:d1")) as cluster:
        yield lambda allocation: Cluster(cluster.settings, parse_allocation(allocation))


@pytest.fixture(scope="package")
def gangs(beside: Callable[[str], Cluster]) -> Gangs:
    """No test may end one of them."""
    cluster = beside("hf:d1+megatron:p2")
    gangs = Gangs(
        cluster,
        cluster.spawn(Worker, "trainer rank", cluster.allocation.trainer, 60.0),
        cluster.spawn(Server, "rollout engine", cluster.allocation.rollout, 60.0),
        cluster.spawn_one(Mailbox, "weight mailbox", 60.0),
    )
    asyncio.run(cluster.processes.started(120.0))
    return gangs


@dataclass(frozen=True)
class Parts:
    """Trainer ranks with a policy and a reference model, an engine, and buckets far smaller than the weights."""

    model: Path
    trainers: Trainers
    engines: Engines
    transport: StoreTransport


@pytest.fixture(scope="package")
def parts(gangs: Any, quickstart: Path) -> Parts:
    model = quickstart / "model"
    settings = RunSettings.model_validate(
        {
            "experiment": {"name": "parts"},
            "allocation": str(gangs.cluster.allocation),
            "model": {"path": str(model)},
            "data": {"train": "unused"},
            "trainer": {"total_steps": 5, "optimizer": {"lr": 1e-2}, "deadline_s": 120.0},
        }
    )
    store = ObjectStore(gangs.mailbox.actors[0], 60.0, bucket_bytes=2_000, in_flight=2)
    trainers = Trainers(settings, model, gangs.cluster, {"policy": 5, "reference": None}, store)
    engines = Engines(settings, model, str(model), 64, gangs.cluster)

    async def build() -> None:
        await gangs.cluster.processes.started(120.0)
        await asyncio.gather(trainers.build(), engines.build())

    asyncio.run(build())
    return Parts(model, trainers, engines, StoreTransport(store, senders=2, receivers=1, dtype=engines.dtype))
