"""What this machine is: its packages, GPUs and the commit of this package.

Invariant: nothing here starts CUDA in this process; what cannot be found out is left out.
"""

import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any


def collect_versions() -> dict[str, Any]:
    """What runs: Python, platform, every installed package, the GPUs of this machine, pentad's git commit if any."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": _query_gpus("name,memory.total,driver_version"),
        "git_commit": _git_commit(),
        "packages": dict(sorted((dist.name, dist.version) for dist in metadata.distributions() if dist.name)),
    }


def seconds_since_start() -> float:
    """Time since this process was started: what a user measures, imports included."""
    import psutil

    return time.time() - psutil.Process().create_time()


def gpus_here() -> list[tuple[str, float]]:
    """Name and memory in GiB of each GPU that CUDA_VISIBLE_DEVICES leaves to the processes of this machine."""
    rows = [line.rpartition(",") for line in _query_gpus("name,memory.total", ",nounits")]
    found = [(name.strip(), int(size) / 1024) for name, _, size in rows if size.strip().isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    entries = [entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1")]
    # GPUs may be named by their UUIDs; parts of a GPU (MIG) are counted, and their sizes are not known here.
    return found[:1] * len(entries) if any(entry.startswith("MIG") for entry in entries) else found[: len(entries)]


def _query_gpus(fields: str, options: str = "") -> list[str]:
    # nvidia-smi rather than torch: asking torch would initialise CUDA in the driver process, which trains nothing.
    if not (tool := shutil.which("nvidia-smi")):
        return []
    return _output(tool, f"--query-gpu={fields}", f"--format=csv,noheader{options}").splitlines()


def _git_commit() -> str | None:
    """The commit of the checkout that this file is tracked in, with "+changes" if it has been changed since."""
    here = Path(__file__).parent
    # A virtual environment may lie inside another repository, whose commit is not that of this package.
    if not (shutil.which("git") and _output("git", "-C", str(here), "ls-files", Path(__file__).name)):
        return None
    commit = _output("git", "-C", str(here), "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _output("git", "-C", str(here), "status", "--porcelain", "-uno") else "")


def _output(*command: str) -> str:
    """Standard output of a command; empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
