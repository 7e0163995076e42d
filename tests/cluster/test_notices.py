"""Warnings of real processes are fetched, of those that live."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray_actors import Server

from pentad.cluster.notices import fetch_notices

# Longer than a process takes to answer on a busy machine.
DEADLINE_S = 60.0


def fetched(actors: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, list[str]]:
    """What is fetched, when all answer: one that is busy is left out until the next time."""
    until = time.monotonic() + DEADLINE_S
    while not (found := fetch_notices(actors, known)) and time.monotonic() < until:
        pass
    return found


def test_real_processes_are_asked(gangs: Any) -> None:
    mortal = Server.options(num_cpus=0).remote(0, 1)
    actors = {"worker 0": gangs.trainers.actors[0], "worker 1": mortal}
    ray.get([actor.warn.remote("slower") for actor in actors.values()])
    ray.get(mortal.warn.remote("odd"))
    assert fetched(actors, {"worker 0": 1}) == {"worker 1": ["slower", "odd"]}
    ray.kill(mortal)
    while True:  # it answers until the signal has reached it
        try:
            ray.get(mortal.notices.remote(0))
        except RayActorError:
            break
    assert fetched(actors, {}) == {"worker 0": ["slower"]}
