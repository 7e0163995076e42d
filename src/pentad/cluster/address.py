"""Whether the Ray cluster of `ray.address` can be reached. Ray is not imported.

Invariant: the answer comes within ten seconds.
"""

import socket

from pentad.errors import UserError

_CONNECT_S = 10.0


def check_reachable(address: str | None) -> None:
    """Knock at a cluster's door; Ray itself would try for minutes.

    Args:
        address: `ray.address`; None for a cluster of the run's own.

    Raises:
        UserError: nothing answers there.
    """
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if address is None or not colon:  # auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise no_cluster(address, getattr(error, "strerror", None) or str(error)) from None


def no_cluster(where: str, reason: str) -> UserError:
    """What is said where a cluster cannot be had."""
    return UserError(f"ray.address: no Ray cluster {where}: {reason}", "start it, or unset ray.address")
