"""Requests to real Ray actors that hold an engine of the tests': dealt out, answered, failed, cancelled."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pentad.cluster.cluster import Cluster
from pentad.cluster.engines import Engines
from pentad.cluster.processes import Call, Processes
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.record.occupancy import lanes_of
from pentad.record.outcome import RunFailedError
from pentad.record.timeline import Window
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams

PUPPET = Path(__file__).parents[1] / "outside" / "puppet.py"
ALLOCATION = "hf:d2+megatron:d1"


@pytest.fixture(scope="module")
def engines(beside: Callable[[str], Cluster], tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Two engines, built. Only the last test ends one."""
    directory = tmp_path_factory.mktemp("model")
    settings = RunSettings.model_validate(
        {
            "experiment": {"name": "engines"},
            "model": {"path": str(directory)},
            "allocation": ALLOCATION,
            "algorithm": {"name": "grpo"},
            "data": {"train": "none.jsonl"},
            "trainer": {"total_steps": 1, "deadline_s": 60.0},
            "rollout": {"engine": f"{PUPPET}:Puppet", "max_engine_restarts": 0},
        }
    )
    cluster = beside(ALLOCATION)
    engines = Engines(settings, directory, str(directory), 64, cluster)

    async def start() -> None:
        await cluster.processes.started(60.0)
        await engines.build()

    asyncio.run(start())
    return engines


def request(name: str, prompt_tokens: int = 4, sample: int = 0) -> GenerateRequest:
    return GenerateRequest(torch.full((prompt_tokens,), 7), name, SamplingParams(max_tokens=6), sample)


async def ask(engines: Engines, *requests: GenerateRequest) -> list[Completion | BaseException]:
    return await asyncio.gather(*map(engines.generate, requests), return_exceptions=True)


def seen(answers: list[Completion | BaseException]) -> list[tuple[int, int]]:
    """Replica, and how many requests it was given in that tick."""
    return [(int(a.response_tokens[1]), int(a.response_tokens[2])) for a in answers if isinstance(a, Completion)]


async def waiting(engines: Engines, count: int) -> None:
    """Return when so many requests wait at the engines."""
    async with asyncio.timeout(30):
        while sum(int(facts[0][0]) for facts in await engines.logprobs([], 1.0)) != count:
            await asyncio.sleep(0.01)


def test_the_requests_of_a_tick_go_together_to_the_least_loaded(engines: Engines) -> None:
    """Samples of a prompt stay together; 26 tokens, then three times 10, of which each goes where there is less."""
    asked = [request("a", 20), *(request("b", 4, sample) for sample in range(2)), request("c", 4), request("d", 4)]
    wanted = [(0, 2), (1, 3), (1, 3), (1, 3), (0, 2)]
    assert seen(asyncio.run(ask(engines, *asked))) == wanted
    assert seen(asyncio.run(ask(engines, *asked))) == wanted


def test_answers_come_as_soon_as_they_are_there(engines: Engines) -> None:
    async def main() -> None:
        late = asyncio.create_task(engines.generate(request("wait 1", 40)))
        quick = await ask(engines, *(request(f"q{number}") for number in range(3)))
        # 46 tokens are in flight on the first.
        assert seen(quick) == [(1, 3)] * 3
        await waiting(engines, 1)
        assert not late.done()
        await engines.resume()
        assert seen([await late]) == [(0, 1)]
        await engines.pause(abort=False)

    asyncio.run(main())


def test_an_engine_generates_while_it_has_requests_and_is_not_paused(engines: Engines) -> None:
    """The one with a request that waits: until the pause, and from the resumption until the answer."""
    timeline = engines.revival._gang.timeline

    async def main() -> Window:
        late = asyncio.create_task(engines.generate(request("wait", 40)))
        await waiting(engines, 1)
        await engines.pause(abort=False)
        timeline.cut()
        await asyncio.sleep(0.05)
        between = timeline.cut()
        await engines.resume()
        await late
        after = timeline.cut()
        await engines.pause(abort=False)
        assert not [span for span in between.spans if span.phase == "generation"]
        timeline.cut()
        return after

    lanes = lanes_of(asyncio.run(main()))
    assert lanes["rollout engine 0"][0][0] == "resuming the engines"
    assert not [part for part in lanes["rollout engine 1"] if part[0] == "generation"]

    async def twice() -> Window:
        await engines.resume()
        timeline.cut()
        await ask(engines, request("a"), request("b"))
        done = timeline.cut()
        await engines.pause(abort=False)
        return done

    done = asyncio.run(twice())
    assert {span.who for span in done.spans if span.phase == "generation"} == {"rollout engine 0", "rollout engine 1"}
    timeline.cut()
    assert timeline.cut().spans == (), "nothing is in flight"


def test_a_failure_is_named_and_leaves_the_others_alone(engines: Engines) -> None:
    refused, broken, unsendable, fine = asyncio.run(
        ask(engines, *(request(name) for name in ("refuse", "break", "break-unsendably", "fine")))
    )
    assert isinstance(refused, UserError)
    assert refused.fix == "ask for less"
    assert isinstance(broken, RunFailedError)
    assert str(broken) == "rollout engine 1 failed during rollout: ValueError: a wrong value"
    assert "UnsendableError: a wrong value" in str(unsendable)
    assert isinstance(fine, Completion)


def test_a_failure_of_the_users_module_is_told_to_a_driver_without_it(engines: Engines) -> None:
    names = ("break-foreign", "break-with-foreign", "refuse-foreign")
    *broken, refused = asyncio.run(ask(engines, *map(request, names)))
    assert [str(error).partition("rollout: ")[2] for error in broken] == [
        "RuntimeError: ForeignError: a wrong value",
        "RuntimeError: ValueError: a wrong value",
    ]
    assert type(refused) is UserError
    assert (refused.cause, refused.fix) == ("the engine has had enough", "let it rest")


def test_a_cancellation_inside_the_engine_is_a_failure(engines: Engines) -> None:
    (broken,) = asyncio.run(ask(engines, request("break-cancelled")))
    assert isinstance(broken, RunFailedError)
    assert "CancelledError: the engine's own task was cancelled" in str(broken)


def test_an_idle_engine_does_not_use_up_the_deadline(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline is of one wait, so a new wait is a new deadline; the engine is not asked a second time."""
    waits: list[tuple[object, ...]] = []
    wait = Processes.wait

    async def counted(self: Processes, calls: Sequence[Call], phase: str, *rest: Any) -> list[list[Any]]:
        if phase == "rollout":
            waits.append(calls[0].refs)
        return await wait(self, calls, phase, *rest)

    monkeypatch.setattr(Processes, "wait", counted)

    async def main() -> None:
        dropped = asyncio.create_task(engines.generate(request("wait")))
        await waiting(engines, 1)
        dropped.cancel()
        await waiting(engines, 0)
        assert len(waits) == 2, "one for the request, one for its answer"
        kept = asyncio.create_task(engines.generate(request("wait")))
        await waiting(engines, 1)
        assert len(waits) == 4
        assert len(set(waits)) == 3
        await engines.resume()
        assert isinstance(await kept, Completion)
        await engines.pause(abort=False)

    asyncio.run(main())


def test_a_cancelled_request_is_dropped_by_its_engine(engines: Engines) -> None:
    async def main() -> None:
        kept, *dropped = [asyncio.create_task(engines.generate(request(f"wait {number}"))) for number in range(4)]
        await waiting(engines, 4)
        for task in dropped:
            task.cancel()
        await waiting(engines, 1)
        await engines.resume()
        assert isinstance(await kept, Completion)
        await engines.pause(abort=False)
        # The load of what was dropped is gone.
        assert seen(await ask(engines, request("a"), request("b"))) == [(0, 1), (1, 1)]

    asyncio.run(main())


def test_a_pause_comes_after_the_requests_that_were_made_before_it(engines: Engines) -> None:
    async def main() -> None:
        await engines.pause(abort=False)
        before = sum(int(facts[0][1]) for facts in await engines.logprobs([], 1.0))
        tasks = [asyncio.create_task(engines.generate(request(f"r{number}"))) for number in range(20)]
        await asyncio.sleep(0)  # they are made
        await asyncio.sleep(0)  # and dealt out
        await asyncio.sleep(0)  # and sent
        await engines.pause(abort=False)
        assert sum(int(facts[0][1]) for facts in await engines.logprobs([], 1.0)) == before + 20
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_run_that_is_interrupted_leaves_nothing_behind(engines: Engines) -> None:
    async def interrupted() -> None:
        task = asyncio.create_task(engines.generate(request("wait")))
        await waiting(engines, 1)
        assert not task.done()

    asyncio.run(interrupted())
    asyncio.run(waiting(engines, 0))
    assert seen(asyncio.run(ask(engines, request("a")))) == [(0, 1)]


def test_an_engine_that_says_that_it_is_lost_counts_as_dead(engines: Engines) -> None:
    async def main() -> None:
        elsewhere = asyncio.create_task(engines.generate(request("wait", 20)))
        answers = await ask(engines, request("give-up"), request("wait", 4))
        assert len(answers) == 2
        for answer in answers:
            assert isinstance(answer, RunFailedError)
            assert str(answer).startswith("rollout engine 1 failed during rollout: EngineFailedError: the core of the")
            assert answer.died == "rollout engine 1"
        await engines.resume()
        assert isinstance(await elsewhere, Completion)
        await engines.pause(abort=False)

    asyncio.run(main())


def test_a_death_that_is_the_last_allowed_fails_the_requests_of_its_engine(engines: Engines) -> None:
    async def main() -> None:
        elsewhere = asyncio.create_task(engines.generate(request("wait", 20)))
        answers = await ask(engines, request("die"), request("wait", 4))
        assert len(answers) == 2
        for answer in answers:
            assert isinstance(answer, RunFailedError)
            assert str(answer).startswith("rollout engine 1 failed during rollout: its process died")
        assert not elsewhere.done()

    asyncio.run(main())
