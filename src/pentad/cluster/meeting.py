"""Where the ranks of a trainer meet.

Invariant: the port of a meeting is held from the moment it is chosen: rank 0 opens the store, with a port that the
kernel picks, and tells the others.
"""

from datetime import timedelta

from torch.distributed import TCPStore


def open_store(host: str, world_size: int, deadline_s: float) -> tuple[TCPStore, str]:
    """Open the store of a meeting in this process.

    Args:
        host: address at which the other ranks reach this machine.
        world_size: how many ranks will come.
        deadline_s: longest time that a rank waits for a value.

    Returns:
        the store, and its address as `host:port`.
    """
    store = TCPStore(host, 0, world_size, is_master=True, timeout=timedelta(seconds=deadline_s), wait_for_workers=False)
    return store, f"{host}:{store.port}"


def join_store(address: str, world_size: int, deadline_s: float) -> TCPStore:
    """The store that another rank has opened.

    Args:
        address: that `open_store` returned.
    """
    host, _, port = address.rpartition(":")
    return TCPStore(host, int(port), world_size, is_master=False, timeout=timedelta(seconds=deadline_s))
