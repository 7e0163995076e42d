"""Warnings of real processes are fetched, of those that live."""

from typing import Any

import ray
from ray_actors import Server

from pentad.cluster.notices import fetch_notices


def test_real_processes_are_asked(gangs: Any) -> None:
    mortal = Server.options(num_cpus=0).remote(0, 1)
    actors = {"worker 0": gangs.trainers.actors[0], "worker 1": mortal}
    ray.get([actor.warn.remote("slower") for actor in actors.values()])
    ray.get(mortal.warn.remote("odd"))
    assert fetch_notices(actors, {"worker 0": 1}) == {"worker 1": ["slower", "odd"]}
    ray.kill(mortal)
    assert fetch_notices(actors, {}) == {"worker 0": ["slower"]}
