"""A process of an engine ends with its leader, however that ends."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

CHILD = """
import sys, time
from pentad.engines.vllm.lifetime import die_with_leader
die_with_leader()
print("ready", flush=True)
time.sleep(60)
"""
LEADER = f"""
import os, subprocess, sys
if len(sys.argv) > 1:
    os.environ["PENTAD_VLLM_LEADER"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("is_engine", [True, False])
def test_a_child_ends_with_the_engine_that_started_it(is_engine: bool) -> None:
    arguments = [sys.executable, "-c", LEADER, *(["engine"] if is_engine else [])]
    leader = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    child = psutil.Process(int(leader.stdout.readline()))
    try:
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        end = time.monotonic() + (10 if is_engine else 0.5)
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
            time.sleep(0.02)
        gone = not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert gone == is_engine
    finally:
        if child.is_running():
            child.kill()
