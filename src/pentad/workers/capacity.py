"""How many worker processes this machine holds.

Invariant: a number that passes can be started: there are file descriptors and memory for it.
"""

from __future__ import annotations

import os
import resource

import psutil

from pentad.errors import UserError

_FILES_PER_WORKER = 3
_FILES_FOR_OTHERS = 256
# Measured: memory of its own of an idle worker, without what a reward imports.
_BYTES_PER_WORKER = 12 << 20


_MOST = 32


def default_workers() -> int:
    """As many processes as this one may use cores, at most 32 and what the memory holds."""
    memory = int(psutil.virtual_memory().available // _BYTES_PER_WORKER)
    return max(1, min(len(os.sched_getaffinity(0)), _MOST, memory))


def check_capacity(workers: int, setting: str) -> None:
    """Refuse more workers than the machine can run.

    Args:
        setting: names the setting that asks for them, for messages.

    Raises:
        UserError: there are too few file descriptors or too little memory.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    spare = files - _FILES_FOR_OTHERS if files != resource.RLIM_INFINITY else workers * _FILES_PER_WORKER
    memory = psutil.virtual_memory().available
    by_files, by_memory = spare // _FILES_PER_WORKER, memory // _BYTES_PER_WORKER
    if workers <= min(by_files, by_memory):
        return
    if by_files < by_memory:
        why = f"this process may open {files} files (ulimit -n), {_FILES_PER_WORKER} of them for each process"
    else:
        why = f"each takes {_BYTES_PER_WORKER >> 20} MiB at least, and {memory / 2**30:.1f} GiB are available"
    cores = os.cpu_count() or 1
    fitting = max(1, min(by_files, by_memory))
    raise UserError(
        f"{setting}={workers} asks for more processes than this machine holds: {why}",
        f"set {setting} to {fitting} or less; {cores}, the number of cores, suits a reward that computes",
    )
