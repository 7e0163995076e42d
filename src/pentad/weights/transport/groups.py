"""Process groups beside torch's default one: made, kept over publications, and aborted.

Invariant: no group touches torch's default group, or another group of this process. A group whose publication failed is
aborted and never used again. Nothing here ends the process: NCCL's watchdog only records what went wrong.
"""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.distributed_c10d import ProcessGroupGloo

Backend = Literal["nccl", "gloo"]

# Torch reads these when a group of NCCL is made: `wait` raises what has failed, and the watchdog ends no process.
_NCCL_ENVIRONMENT = {"TORCH_NCCL_BLOCKING_WAIT": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
_ABORT_S = 10.0
_POLL_S = 0.001


@dataclass(frozen=True)
class Group:
    """Processes that broadcast to each other.

    Attributes:
        name: the same in all of its processes, and in no other group.
        rank: of this process; 0 is the sender.
        backend: torch's.
    """

    name: str
    rank: int
    backend: Any

    def broadcast(self, tensor: torch.Tensor) -> Any:
        """Start to send a tensor of rank 0 to all, or to receive it; returns torch's `Work`."""
        return self.backend.broadcast(tensor, 0)


HELD: dict[tuple[str, int, bool], Group] = {}
"""Groups of this process by address of the store, pipeline stage, and whether it is the sender."""

# Torch waits in a group's destructor for what is still under way.
_ABORTED: list[Any] = []


def connect(address: str, deadline_s: float) -> TCPStore:
    """A connection of its own to the store that is served at `host:port`."""
    host, _, port = address.rpartition(":")
    return TCPStore(host, int(port), None, is_master=False, timeout=timedelta(seconds=deadline_s))


def make_group(
    kind: Backend, address: str, name: str, rank: int, size: int, device: torch.device, deadline_s: float
) -> Group:
    """Meet the other processes and try the group out; it blocks until all are there.

    Args:
        address: of the store at which they meet.
        name: of the group.
        size: processes of the group.
        device: where the tensors will be.
    """
    store = PrefixStore(f"group/{name}", connect(address, deadline_s))
    timeout = timedelta(seconds=deadline_s)
    if kind == "gloo":
        backend: Any = ProcessGroupGloo(store, rank, size, timeout)
    else:
        from torch.distributed.distributed_c10d import ProcessGroupNCCL

        torch.cuda.set_device(device)
        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        with _environment(_NCCL_ENVIRONMENT):
            backend = ProcessGroupNCCL(store, rank, size, options)
    group = Group(name, rank, backend)
    # NCCL makes its communicator for the first tensor.
    work = group.broadcast(torch.zeros(1, dtype=torch.uint8, device=device))
    while not work.is_completed():
        time.sleep(_POLL_S)
    work.wait()
    return group


def abort(group: Group) -> None:
    """End a group and what is under way in it; the other processes are not told."""
    for key in [key for key, held in HELD.items() if held is group]:
        del HELD[key]
    _ABORTED.append(group.backend)
    aborting = threading.Thread(target=group.backend.abort, daemon=True)
    aborting.start()
    aborting.join(_ABORT_S)


@contextmanager
def _environment(values: dict[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
