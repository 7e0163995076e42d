"""Processes answer together, fail together with the first cause, and are gone afterwards."""

import operator
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from pentad.config.schema.megatron import MegatronSettings
from pentad.errors import UserError
from pentad.layout import Layout
from pentad.platform.device import enter_platform
from pentad.trainers.megatron.parallel import join_ranks
from pentad.verify.processes import RankFailedError, Ranks
from pentad.verify.rank import Job, compute


def echo(rank: int, meeting: str, word: str) -> tuple[int, str, int]:
    print("not for the user")
    return rank, word, os.getpid()


def misbehave(rank: int, meeting: str, how: str) -> None:
    if rank != 1:
        time.sleep(600)
    if how == "raise":
        raise ValueError("the shard is wrong")
    if how == "user":
        raise UserError("the model is too large", "take a smaller one")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        print("out of memory", flush=True)
        os._exit(3)
    time.sleep(600)


def fail_in_collective(rank: int, meeting: str) -> None:
    platform = enter_platform()
    join_ranks(platform, rank, 3, meeting, 30)
    if rank == 2:
        raise ValueError("rank two gives up")
    torch.distributed.all_reduce(torch.ones(1))


def alive(processes: list[int]) -> list[int]:
    return [number for number in processes if psutil.pid_exists(number)]


def test_answers_in_order_and_again(capfd):
    with Ranks(2, "fork") as ranks:
        first = ranks.call(echo, 2, "one", deadline_s=60)
        second = ranks.call(echo, 1, "two", deadline_s=60)
    assert [answer[:2] for answer in first] == [(0, "one"), (1, "one")]
    assert second == [(0, "two", first[0][2])]
    assert not alive([answer[2] for answer in first])
    assert "not for the user" not in "".join(capfd.readouterr())


def test_spawned_processes_answer():
    """As on GPUs, where a fork of a process that uses CUDA would be of no use."""
    with Ranks(2, "spawn") as ranks:
        nothing, meeting = ranks.call(operator.mul, 2, deadline_s=60)
    assert nothing == ""
    assert re.fullmatch(r"file:///.*/meeting-1", meeting)


def test_kept_processes_compute_one_layout_after_the_other(checkpoint, tmp_path):
    """As on GPUs, where ranks are started once."""
    layouts = [Layout(), Layout(tensor=2), Layout(pipeline=2, virtual=2), Layout(), Layout(data=2)]
    worst = []
    with Ranks(2, "fork") as ranks:
        for number, layout in enumerate(layouts):
            job = Job(
                layout, checkpoint("llama_tied"), tmp_path / "reference", number == 0, "fp32", MegatronSettings(), 60
            )
            found = ranks.call(compute, layout.world, job, deadline_s=90)
            worst += [max(rank.gradients.values()) for rank in found if rank.gradients]
    assert len(worst) == 2 + 2 + 1 + 2
    assert max(worst) < 1e-5


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", r"rank 1: ValueError: the shard is wrong\n(.|\n)*misbehave"),
        ("die", r"rank 1: was killed by signal 9"),
        ("exit", r"rank 1: ended with exit code 3\nout of memory"),
    ],
)
def test_first_cause_is_told_at_once(how, message):
    started = time.monotonic()
    with Ranks(2, "fork") as ranks, pytest.raises(RankFailedError, match=message):
        ranks.call(misbehave, 2, how, deadline_s=280)
    assert time.monotonic() - started < 100, "the others were waited for"


def test_user_error_stays_one():
    with Ranks(2, "fork") as ranks, pytest.raises(UserError, match="too large"):
        ranks.call(misbehave, 2, "user", deadline_s=30)


def test_victims_in_a_collective_are_not_blamed():
    with Ranks(3, "fork") as ranks, pytest.raises(RankFailedError, match=r"^rank 2: ValueError: rank two gives up"):
        ranks.call(fail_in_collective, 3, deadline_s=30)


def test_deadline_names_who_is_late():
    with Ranks(2, "fork") as ranks, pytest.raises(RankFailedError, match=r"rank 0, 1 did not answer within 1 s"):
        ranks.call(misbehave, 2, "hang", deadline_s=1)


PARENT = """
import os, time
from pentad.verify.processes import Ranks

def number(rank, meeting):
    return os.getpid()

def hang(rank, meeting):
    time.sleep(60)

with Ranks(2, "fork") as ranks:
    print(*ranks.call(number, 2, deadline_s=60), flush=True)
    ranks.call(hang, 2, deadline_s=60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_its_parent(how):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    numbers = [int(word) for word in parent.stdout.readline().split()]
    assert len(alive(numbers)) == 2
    parent.send_signal(how)
    parent.wait(60)
    end = time.monotonic() + 60
    while alive(numbers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(numbers)
