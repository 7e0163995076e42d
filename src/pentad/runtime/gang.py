"""Calls to all processes of one kind at once.

Invariant: a call returns when every process has answered, or raises the first cause as soon as one has failed or the
deadline has passed; it never waits for a process whose peer is gone.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from pentad.runtime.failure import RunFailedError, first_cause

_POLL_S = 0.2
# After the first failure, others may report what really happened before it is judged.
_GRACE_S = 2.0


class Gang:
    """Actors that are called together.

    Args:
        name: of one process, as in "trainer rank".
        actors: in order of rank.
        deadline_s: longest time of one call, in seconds.
    """

    def __init__(self, name: str, actors: Sequence[ActorHandle], deadline_s: float) -> None:
        self.name = name
        self.actors = tuple(actors)
        self.deadline_s = deadline_s

    def __len__(self) -> int:
        return len(self.actors)

    def call(
        self, method: str, *args: Any, phase: str | None = None, progress: Callable[[int], None] | None = None
    ) -> list[Any]:
        """Call a method of every actor with the same arguments; results in order of rank.

        Args:
            phase: what is being done, for errors; default the method's name.
            progress: called now and then with the sum of what the actors' `progress` returns.
        """
        return self.scatter(method, [args] * len(self.actors), phase=phase, progress=progress)

    def first(self, method: str, *args: Any) -> Any:
        """Call a method of the first actor only."""
        ref = getattr(self.actors[0], method).remote(*args)
        self._wait({ref: f"{self.name} 0"}, method, None)
        return ray.get(ref)

    def scatter(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        *,
        phase: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """Call a method of each actor with its own arguments; see `call`."""
        phase = phase or method.replace("_", " ")
        refs = [getattr(actor, method).remote(*args) for actor, args in zip(self.actors, arguments, strict=True)]
        names = {ref: f"{self.name} {rank}" for rank, ref in enumerate(refs)}
        self._wait(names, phase, progress)
        return ray.get(refs)

    def _wait(self, names: dict[Any, str], phase: str, progress: Callable[[int], None] | None) -> None:
        pending, errors = list(names), {}
        end = time.monotonic() + self.deadline_s
        while pending:
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=_POLL_S if progress else 1.0)
            for ref in done:
                error = _error_of(ref)
                if error is not None:
                    errors[names[ref]] = error
                    end = min(end, time.monotonic() + _GRACE_S)
            if time.monotonic() > end and pending:
                if errors:
                    break
                waiting = ", ".join(names[ref] for ref in pending)
                raise RunFailedError(
                    f"{waiting} did not finish {phase} within {self.deadline_s:.0f} s (trainer.deadline_s)"
                )
            if progress and pending and not errors:
                progress(self._progress())
        if errors:
            raise first_cause(errors, phase)

    def _progress(self) -> int:
        refs = [actor.progress.remote() for actor in self.actors]
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=_POLL_S)
        return sum(ray.get(ref) for ref in done if _error_of(ref) is None)


def _error_of(ref: Any) -> BaseException | None:
    try:
        ray.get(ref, timeout=30)
    except Exception as error:
        return error
    return None
