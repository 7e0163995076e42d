"""What every process of a run can do beside its work.

Invariant: these methods are answered while the process works, each on a thread of its own.
"""

import os
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import ray

from pentad.cluster.processes import ProcessInfo
from pentad.errors import UserError
from pentad.record.notices import collect_notices

# For `ray.remote(concurrency_groups=...)` of a class below.
GROUPS = {"control": 1, "life": 1}


def check_visible(setting: str, directory: Path) -> None:
    """Refuse a directory of the driver's machine that this machine has not got.

    Args:
        setting: that names it.

    Raises:
        UserError: it is not there.
    """
    if not directory.is_dir():
        raise UserError(
            f"{setting}: machine {socket.gethostname()} does not see {directory}",
            "put it on a file system that all machines share, at the same path",
        )


def thread_share(processes: int) -> int:
    """CPU threads of a process, from the cores of the machine that it is on.

    Args:
        processes: of its kind on this machine, which work at the same time. Trainer ranks and engines take turns.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


class Process:
    """Base of the actor classes.

    Args:
        rank: of the process among those of its kind.
        world_size: how many there are.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._done = 0
        self._notices = collect_notices()
        self._activity = ""

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Return never: who holds the reference to the answer learns of this process's death."""
        threading.Event().wait()

    @ray.method(concurrency_group="control")
    def info(self) -> ProcessInfo:
        """Who this process is."""
        # Ray has pointed standard error to a file of this process.
        output = Path("/proc/self/fd/2")
        log = os.readlink(output) if output.is_symlink() else "in the logs of Ray's session directory"
        context = ray.get_runtime_context()
        return ProcessInfo(
            os.getpid(), context.get_actor_id() or "", context.get_node_id(), ray.util.get_node_ip_address(), log
        )

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """How much of the current call is done, in the units of that call."""
        return self._done

    @ray.method(concurrency_group="control")
    def notices(self, known: int) -> list[str]:
        """The warnings of this process but the first `known`."""
        return self._notices.after(known)

    @ray.method(concurrency_group="control")
    def activity(self) -> str:
        """What the process is at, for the message that it is late; empty where it has not said."""
        return self._activity

    def _noting[T](self, doing: str, tensors: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
        """The same tensors; meanwhile `activity` says which one was last."""
        self._activity = f"{doing} the first tensor"
        try:
            for name, tensor in tensors:
                self._activity = f"{doing} {name}"
                yield name, tensor
                del tensor  # its memory may be given back while the next is waited for
        finally:
            self._activity = ""
