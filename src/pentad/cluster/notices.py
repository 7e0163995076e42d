"""Fetching the warnings of a run's processes."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle

# A process that does not answer in this time is asked again at the next step.
_WAIT_S = 1.0


def fetch_notices(actors: Mapping[str, ActorHandle], known: Mapping[str, int]) -> dict[str, list[str]]:
    """New warnings of each process, by its name. A process that is busy with its start, or dead, is left out.

    Args:
        actors: processes by name; their class has the methods of `pentad.cluster.process.Process`.
        known: how many warnings of each process are known already.
    """
    refs: dict[Any, str] = {actor.notices.remote(known.get(name, 0)): name for name, actor in actors.items()}
    done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=_WAIT_S) if refs else ([], [])
    found: dict[str, list[str]] = {}
    for ref in done:
        try:
            texts = ray.get(ref)
        except Exception:
            continue  # the call that is being waited for says what happened to the process
        if texts:
            found[refs[ref]] = texts
    return found
