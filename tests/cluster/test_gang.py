"""Calls to real Ray actors: overlapping, failing, late and cancelled."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_actors import Server

from pentad.cluster import processes
from pentad.cluster.gang import Gang
from pentad.cluster.processes import DeadlineError, Processes
from pentad.errors import UserError
from pentad.record.outcome import RunFailedError

# What takes a moment, on the slowest machine; deadlines in tests that measure by it are ten times as long.
MINUTE = 60.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_calls_overlap_and_the_loop_goes_on(gangs: Any, tmp_path: Path) -> None:
    """Each of three calls ends only when the others are in flight."""
    trainers, engines = gangs.trainers, gangs.engines
    one, two, three = tmp_path / "1", tmp_path / "2", tmp_path / "3"
    seen: list[int] = []

    async def tick() -> None:
        await until(three.exists)
        for _ in range(20):
            await asyncio.sleep(0.05)
        one.touch()  # without which none of them ends

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
    three.unlink()
    two.unlink()

    async def watch_progress() -> None:
        call = asyncio.ensure_future(trainers.call("meet", two, three, phase="training", progress=seen.append))
        await until(lambda: 10 in seen)
        three.touch()
        assert await call == [0, 1]

    asyncio.run(watch_progress())


def test_spans_are_of_each_process_from_the_call_to_its_answer(gangs: Any, tmp_path: Path) -> None:
    trainers, now, later = gangs.trainers, tmp_path / "now", tmp_path / "later"
    now.touch()

    async def drive(deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            # The first rank answers at once, the second when `later` is there.
            await trainers.call_each("meet", [(tmp_path / "a", now), (tmp_path / "b", later)], "training")

    async def answered() -> None:
        asyncio.get_running_loop().call_later(1.0, later.touch)
        await drive(MINUTE)

    trainers.timeline.cut()
    asyncio.run(answered())
    spans = {span.who: span for span in trainers.timeline.cut().spans}
    assert spans.keys() == {"trainer rank 0", "trainer rank 1"}
    assert spans["trainer rank 1"].end - spans["trainer rank 0"].end > 0.5
    assert {span.phase for span in spans.values()} == {"training"}
    later.unlink()

    async def left() -> None:
        with pytest.raises(TimeoutError):
            await drive(0.3)
        await asyncio.sleep(0)

    asyncio.run(left())
    assert len(trainers.timeline.cut().spans) == 2
    assert trainers.timeline.cut().spans == (), "a wait that is left leaves no span open"
    later.touch()


def test_the_first_cause_is_told_and_not_its_echo(gangs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers, here, never = gangs.trainers, tmp_path / "here", tmp_path / "never"
    monkeypatch.setattr(trainers, "deadline_s", 10 * MINUTE)
    echo, cause = RuntimeError("gloo: connection closed by peer"), ValueError("the loss is wrong")
    fault = UserError("the data are wrong", "correct them")

    async def drive(first: Exception, second: Exception, file: Path) -> None:
        async with asyncio.timeout(MINUTE):
            await trainers.call_each("fail", [(first,), (second, file)], "training")

    async def later(first: Exception, second: Exception) -> None:
        asyncio.get_running_loop().call_later(0.5, here.touch)
        await drive(first, second, here)

    with monkeypatch.context() as patient:
        patient.setattr(processes, "_GRACE_S", MINUTE)  # however slow this machine is
        with pytest.raises(RunFailedError, match=r"trainer rank 1 failed during training: ValueError: the loss"):
            asyncio.run(later(echo, cause))
        here.unlink()
        with pytest.raises(UserError, match="the data are wrong"):
            asyncio.run(later(cause, fault))
    # A rank whose peer has failed is waited for no longer than it may take to tell why.
    with pytest.raises(RunFailedError, match="trainer rank 0 failed"):
        asyncio.run(drive(cause, cause, never))
    never.touch()


def test_the_deadline_names_who_did_not_answer(gangs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers, engines = gangs.trainers, gangs.engines
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


def test_cancelling_leaves_nothing_behind(gangs: Any, tmp_path: Path) -> None:
    trainers, engines = gangs.trainers, gangs.engines
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


def test_a_wait_that_is_destroyed_late_starts_no_cluster(
    gangs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Python ends: Ray's functions would start a cluster, or join any that they find."""
    cancelled: list[Any] = []
    call = gangs.engines.call_rank(0, "meet", tmp_path / "1", tmp_path / "2", phase="rollout")
    loop = asyncio.new_event_loop()
    task = loop.create_task(call)
    loop.set_exception_handler(lambda *_: None)  # it would tell of the task when that is destroyed
    loop.call_later(0.1, loop.stop)
    loop.run_forever()
    loop.close()
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.cancel", lambda ref, **_: cancelled.append(ref))
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        call.close()
    assert not task.done()
    assert not cancelled
    (tmp_path / "2").touch()


def test_an_interrupt_ends_all_calls_at_once(gangs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers, engines = gangs.trainers, gangs.engines
    for gang in (trainers, engines):
        monkeypatch.setattr(gang, "deadline_s", 10 * MINUTE)
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
        assert time.monotonic() - began < MINUTE
    finally:
        signal.signal(signal.SIGINT, previous)
        never.touch()


def test_threads_are_those_of_the_processs_own_machine(gangs: Any) -> None:
    trainers, engines = gangs.trainers, gangs.engines
    assert [trainers.neighbours(0), trainers.neighbours(1), engines.neighbours(0)] == [2, 2, 1]
    assert asyncio.run(trainers.call("threads_on_one_core", 1, phase="asking")) == [1, 1]
    assert trainers.processes.name_of(trainers.info(1).actor_id) == "trainer rank 1"


def test_a_death_is_noticed_whoever_is_waited_for(gangs: Any, tmp_path: Path) -> None:
    everyone = Processes()
    trainers = Gang("trainer rank", gangs.trainers.actors, everyone, 10 * MINUTE)
    engines = Gang("rollout engine", [Server.options(num_cpus=0).remote(0, 1)], everyone, 10 * MINUTE)

    async def drive() -> None:
        await everyone.started(120.0)
        waiting = asyncio.ensure_future(trainers.call("meet", tmp_path / "1", tmp_path / "never", phase="training"))
        await until((tmp_path / "1").exists)
        os.kill(engines.info(0).pid, signal.SIGKILL)
        with pytest.raises(RunFailedError, match="rollout engine 0 failed during training: its process died") as caught:
            async with asyncio.timeout(MINUTE):
                await waiting
        assert caught.value.facts == {"log": engines.info(0).log}
        with pytest.raises(RunFailedError, match="rollout engine 0 failed during log-probs: its process died"):
            await trainers.call("answer", 1, phase="log-probs")
        assert len(asyncio.all_tasks()) == 1
        (tmp_path / "never").touch()

    asyncio.run(drive())
