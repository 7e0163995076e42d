"""Calls to real Ray actors: overlapping, failing, late and cancelled."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from ray_actors import Server, Worker

from pentad.cluster.cluster import Cluster
from pentad.cluster.gang import Gang
from pentad.cluster.processes import DeadlineError
from pentad.config.schema.ray import RaySettings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.record.outcome import RunFailedError

Gangs = tuple[Gang, Gang]


@pytest.fixture(scope="module")
def gangs() -> Iterator[tuple[Gang, Gang]]:
    """Two workers as trainer ranks and a server as rollout engine, which all run. Only the last test ends one."""
    with Cluster(RaySettings(), parse_allocation("hf:d1+megatron:d2")) as cluster:
        trainers = cluster.spawn(Worker, "trainer rank", cluster.allocation.trainer, 60.0)
        engines = cluster.spawn(Server, "rollout engine", cluster.allocation.rollout, 60.0)
        asyncio.run(cluster.processes.started(60.0))
        yield trainers, engines


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_calls_overlap_and_the_loop_goes_on(gangs: Gangs, tmp_path: Path) -> None:
    """Each of three calls ends only when the others are in flight."""
    trainers, engines = gangs
    one, two, three, ticks = tmp_path / "1", tmp_path / "2", tmp_path / "3", []
    seen: list[int] = []

    async def tick() -> None:
        await until(three.exists)
        for _ in range(20):
            ticks.append(time.monotonic())
            await asyncio.sleep(0.05)
        one.touch()

    async def drive() -> None:
        answers = await asyncio.gather(
            trainers.call_each("meet", [(two, three), (two, three)], "training", seen.append),
            engines.call_rank(0, "meet", three, one, phase="rollout"),
            engines.call_rank(0, "meet", three, two, phase="rollout"),
            tick(),
        )
        assert answers == [[0, 1], 0, 0, None]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(drive())
    assert max(later - sooner for sooner, later in pairwise(ticks)) < 0.5
    three.unlink()
    two.unlink()

    async def watch_progress() -> None:
        call = asyncio.ensure_future(trainers.call("meet", two, three, phase="training", progress=seen.append))
        await until(lambda: 10 in seen)
        three.touch()
        assert await call == [0, 1]

    asyncio.run(watch_progress())


def test_the_first_cause_is_told_and_not_its_echo(gangs: Gangs, tmp_path: Path) -> None:
    trainers, _ = gangs
    echo, cause = RuntimeError("gloo: connection closed by peer"), ValueError("the loss is wrong")
    fault = UserError("the data are wrong", "correct them")

    async def drive() -> None:
        with pytest.raises(RunFailedError, match=r"trainer rank 1 failed during training: ValueError: the loss"):
            await trainers.call_each("fail", [(echo, 0.0), (cause, 0.5)], "training")
        with pytest.raises(UserError, match="the data are wrong"):
            await trainers.call_each("fail", [(cause, 0.0), (fault, 0.5)], "training")
        # A rank whose peer has failed is waited for no longer than it may take to tell why.
        began = time.monotonic()
        with pytest.raises(RunFailedError, match="trainer rank 0 failed"):
            await trainers.call_each("fail", [(cause, 0.0), (cause, 4.0)], "training")
        assert time.monotonic() - began < 3.5

    asyncio.run(drive())


def test_the_deadline_names_who_did_not_answer(gangs: Gangs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers, engines = gangs
    monkeypatch.setattr(trainers, "deadline_s", 1.0)
    here, never = tmp_path / "here", tmp_path / "never"
    here.touch()

    async def drive() -> None:
        with pytest.raises(DeadlineError, match=r"trainer rank 1 did not finish training within 1 s \(trainer.dead"):
            await trainers.call_each("meet", [(here, here), (here, never)], "training", lambda done: None)
        together = [trainers.start_each("answer", [(1,), (1,)]), engines.start("meet", here, never)]
        with pytest.raises(DeadlineError) as caught:
            await engines.processes.wait(together, "weight synchronisation", 1.0)
        assert caught.value.names == ("trainer rank 1", "rollout engine 0")  # the former is still in the call before
        never.touch()

    asyncio.run(drive())


def test_cancelling_leaves_nothing_behind(gangs: Gangs, tmp_path: Path) -> None:
    trainers, engines = gangs
    one, two, never = tmp_path / "1", tmp_path / "2", tmp_path / "never"

    async def drive() -> None:
        calls = [
            asyncio.ensure_future(trainers.call("meet", one, never, phase="training", progress=lambda done: None)),
            asyncio.ensure_future(engines.call_rank(0, "meet", two, never, phase="rollout")),
        ]
        await until(lambda: one.exists() and two.exists())
        for call in calls:
            call.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True)
        )
        assert len(asyncio.all_tasks()) == 1
        await until(two.with_suffix(".cancelled").exists)
        assert await engines.call_rank(0, "meet", one, two, phase="rollout") == 0
        never.touch()  # the ranks finish what they had begun
        assert await trainers.call("answer", 7, phase="training") == [7, 7]

    asyncio.run(drive())


def test_an_interrupt_ends_all_calls_at_once(gangs: Gangs, tmp_path: Path) -> None:
    trainers, engines = gangs
    one, never = tmp_path / "1", tmp_path / "never"

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    async def drive() -> None:
        waiting = asyncio.gather(
            trainers.call("meet", one, never, phase="training"),
            *(engines.call_rank(0, "meet", tmp_path / "2", never, phase="rollout") for _ in range(50)),
        )
        await until(one.exists)
        asyncio.get_running_loop().call_later(0.1, signal.raise_signal, signal.SIGINT)
        await waiting

    previous = signal.signal(signal.SIGINT, stop)
    try:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(drive())
        assert time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGINT, previous)
        never.touch()


def test_threads_are_those_of_the_processs_own_machine(gangs: Gangs) -> None:
    trainers, engines = gangs
    assert [trainers.neighbours(0), trainers.neighbours(1), engines.neighbours(0)] == [2, 2, 1]
    assert asyncio.run(trainers.call("threads_on_one_core", 1, phase="asking")) == [1, 1]
    assert trainers.processes.name_of(trainers.info(1).actor_id) == "trainer rank 1"


def test_a_death_is_noticed_whoever_is_waited_for(gangs: Gangs, tmp_path: Path) -> None:
    trainers, engines = gangs
    engine = engines.info(0)

    async def drive() -> None:
        waiting = asyncio.ensure_future(trainers.call("meet", tmp_path / "1", tmp_path / "never", phase="training"))
        await until((tmp_path / "1").exists)
        began = time.monotonic()
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(RunFailedError, match="rollout engine 0 failed during training: its process died") as caught:
            await waiting
        assert time.monotonic() - began < 10
        assert caught.value.facts == {"log": engine.log}
        with pytest.raises(RunFailedError, match="rollout engine 0 failed during log-probs: its process died"):
            await trainers.call("answer", 1, phase="log-probs")
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(drive())
