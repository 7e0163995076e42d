"""No vLLM process outlives the process that owns the engine.

Invariant: once a process of vLLM has called `die_with_leader`, the kernel ends it when its parent goes, however the
parent ends.

vLLM's workers watch a pipe of its core process, but nothing watches over the core. `die_with_leader` is called in it
through the entry point `vllm.general_plugins`, and where the worker extension is imported.
"""

import ctypes
import os
import signal

# Set by the engine for its children: its own process id.
LEADER = "PENTAD_VLLM_LEADER"
_PR_SET_PDEATHSIG = 1


def die_with_leader() -> None:
    """Have the kernel end this process with its parent, where the parent is an engine of Pentad's."""
    leader = os.environ.get(LEADER)
    if leader is None or leader == str(os.getpid()) or leader != str(os.getppid()):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(leader):  # it went before this took effect
        os.kill(os.getpid(), signal.SIGKILL)
    # vLLM's workers are children of its core, and end with that.
    os.environ[LEADER] = str(os.getpid())
