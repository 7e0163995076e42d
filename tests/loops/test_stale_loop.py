"""The loop where sampling goes on while the trainer trains: versions, importance weights, and what updates do."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from loop_world import PER_STEP, SAMPLES, Engine, Events, Model, Publication, World

from pentad.config.schema.algorithms import GRPOSettings
from pentad.config.schema.algorithms.correction import CorrectionSettings
from pentad.loops.stopping import StoppedError
from pentad.samples.batch import Batch
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest


class SlowEngine(Engine):
    """Samples one token a tick, each under the version of its tick; can be paused and aborts on demand."""

    def __init__(self, events: Events) -> None:
        super().__init__(events)
        self.open = asyncio.Event()
        self.open.set()
        self.aborts = 0
        self.running = 0

    async def generate(self, request: GenerateRequest) -> Completion:
        self.requests.append(request)
        versions: list[int] = []
        aborts, reason = self.aborts, "stop"
        self.running += 1
        for _ in range(15 * (request.sample + 1)):
            await self.open.wait()
            await asyncio.sleep(0)
            if self.aborts != aborts:
                reason = "abort"
                break
            versions.append(self.version)
        self.running -= 1
        return Completion(
            response_tokens=torch.full((len(versions),), request.sample),
            response_logprobs=torch.full((len(versions),), -1.0),
            versions=torch.tensor(versions, dtype=torch.int32),
            finish_reason=reason,  # ty: ignore
        )


class Update(Publication):
    """Pauses the engine, aborting what runs where asked to, and gives it the version after a while."""

    def __init__(self, engine: SlowEngine, events: Events, *, abort: bool) -> None:
        super().__init__(engine, events)
        self.slow, self.abort = engine, abort
        self.running: list[int] = []

    async def bring(self, version: int, *, asleep: bool = False) -> None:
        if self.engine.version == version:
            return
        self.running.append(self.slow.running)
        self.slow.open.clear()
        self.slow.aborts += self.abort
        await asyncio.sleep(0)
        await super().bring(version)
        self.slow.open.set()


class SlowModel(Model):
    """Trains for some ticks."""

    async def train(self, minibatch: Batch, loss: Any, temperature: float, progress: Any) -> Any:
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().train(minibatch, loss, temperature, progress)


def run(on_update: str, staleness: int, steps: int = 8, **algorithm: Any) -> tuple[World, Update]:
    async def within() -> tuple[World, Update]:
        world = World(
            GRPOSettings(**algorithm),
            steps,
            max_staleness=staleness,
            finish=on_update == "finish",
            engine=SlowEngine,
            model=SlowModel,
        )
        update = Update(world.engine, world.events, abort=on_update == "restart")  # ty: ignore
        world.parts.publication = update  # ty: ignore
        await asyncio.wait_for(world.loop.run(), 60)
        return world, update

    return asyncio.run(within())


def metrics_of(world: World) -> list[Mapping[str, float]]:
    return [metrics for _, metrics in world.journal.written]


@pytest.mark.parametrize("on_update", ["continue", "restart", "finish"])
@pytest.mark.parametrize("staleness", [1, 3])
def test_every_group_is_trained_once_and_none_is_too_old(on_update: str, staleness: int) -> None:
    world, update = run(on_update, staleness)
    groups = [int(group) for batch in world.policy.trained for group in batch.per_sequence["group_ids"].unique()]
    assert len(groups) == len(set(groups)) == 8 * PER_STEP
    for version, batch in enumerate(world.policy.trained):
        oldest = batch.per_sequence["weight_versions"]
        assert bool((version - oldest <= staleness).all()) and bool((oldest <= version).all())
    metrics = metrics_of(world)
    assert sum(step["data/samples_generated"] for step in metrics) == 8 * PER_STEP * SAMPLES
    assert max(step["staleness/max"] for step in metrics) > 0, "nothing was sampled while the trainer trained"
    assert all(step["staleness/max"] <= staleness for step in metrics)
    for step in metrics:
        shares = [step[f"staleness/share_{age}"] for age in range(staleness + 1) if f"staleness/share_{age}" in step]
        assert sum(shares) == pytest.approx(1)
    mixed, aborted = (
        sum(step[name] for step in metrics) for name in ("staleness/mixed_fraction", "data/samples_aborted")
    )
    assert (mixed > 0) == (on_update == "continue")
    assert (aborted > 0) == (on_update == "restart")
    assert any(update.running) == (on_update != "finish")


def test_synchronous_training_has_no_such_metrics_and_no_weights() -> None:
    world, _ = run("continue", 0)
    assert not [name for step in metrics_of(world) for name in step if name.startswith(("staleness/", "importance/"))]
    assert all("importance_weights" not in batch.per_token for batch in world.policy.trained)


def test_weights_are_those_of_the_policy_at_the_beginning_of_the_batch() -> None:
    world, _ = run("continue", 2, optimizer_steps=2)
    assert any(batch.per_token["importance_weights"].sum() > 0 for batch in world.policy.trained)
    for number, batch in enumerate(world.policy.trained):
        mask = batch.loss_mask
        old = -0.5 - 0.125 * (number - number % 2)
        # The engine's log-probs are -1; weights above 2 are cut off.
        expected = torch.full((int(mask.sum()),), min(2.0, float(torch.tensor(old + 1.0).exp())))
        assert torch.allclose(batch.per_token["importance_weights"][mask], expected)
        assert not bool(batch.per_token["importance_weights"][~mask].any())


def test_old_logprobs_may_be_those_that_were_sampled() -> None:
    world, _ = run("continue", 2, old_logprobs="rollout")
    assert "score policy" not in world.events
    for batch in world.policy.trained:
        assert torch.equal(batch.per_token["old_logprobs"], batch.per_token["rollout_logprobs"])
        assert "importance_weights" not in batch.per_token


def test_correction_may_be_off() -> None:
    world, _ = run("continue", 2, correction=CorrectionSettings(level="none"))
    assert all("importance_weights" not in batch.per_token for batch in world.policy.trained)


def test_a_stop_is_heard_while_requests_are_finished() -> None:
    """`finish` waits for the longest response; a stop does not."""

    async def within() -> World:
        world = World(GRPOSettings(), 6, max_staleness=2, finish=True, engine=SlowEngine, model=SlowModel)
        update = Update(world.engine, world.events, abort=False)  # ty: ignore
        world.parts.publication = update  # ty: ignore
        drain = world.parts.source._sampler.drain  # ty: ignore

        async def stop_first() -> None:
            if world.engine.version >= 1:
                world.loop.stop()
                world.engine.open.clear()  # ty: ignore
            await drain()

        world.parts.source._sampler.drain = stop_first  # ty: ignore
        with pytest.raises(StoppedError):
            await asyncio.wait_for(world.loop.run(), 20)
        return world

    world = asyncio.run(within())
    # The step under way was finished and recorded; its weights were not published.
    assert world.loop.step == 2 and [step for step, _ in world.journal.written] == [1, 2]
    assert world.engine.version == 1


def test_a_group_that_is_finished_as_the_state_is_taken_is_in_it() -> None:
    """Whatever the moment, each number that is not trained on is either finished, or to be sampled with its prompt."""

    async def within() -> None:
        world = World(GRPOSettings(), 4, max_staleness=2, engine=SlowEngine, model=SlowModel)
        world.parts.publication = Update(world.engine, world.events, abort=False)  # ty: ignore
        running = asyncio.ensure_future(world.loop.run())
        while not running.done():
            await asyncio.sleep(0)
            state = world.parts.source.state_dict()
            waiting = state["experience"]
            asked = {number for number in waiting["sampling"] if number < state["sampler"]["given"]}
            assert asked <= set(state["sampler"]["indices"])
            assert not set(waiting["finished"]) & set(state["sampler"]["indices"])
        await running

    asyncio.run(within())


def test_less_staleness_after_a_resume_samples_again_what_would_be_too_old() -> None:
    async def within() -> tuple[World, list[int]]:
        world = World(GRPOSettings(), 8, max_staleness=3, engine=SlowEngine, model=SlowModel)
        world.parts.publication = Update(world.engine, world.events, abort=False)  # ty: ignore
        states = []
        finish = world.loop._finish_step

        async def kept(*arguments: Any) -> None:
            states.append(world.loop.state_dict())
            await finish(*arguments)

        world.loop._finish_step = kept  # ty: ignore
        await world.loop.run()
        state = next(state for state in states if state["source"]["experience"]["finished"])
        again = World(GRPOSettings(), 8, max_staleness=1, engine=SlowEngine, model=SlowModel)
        again.parts.publication = Update(again.engine, again.events, abort=False)  # ty: ignore
        again.loop.load_state_dict(state)
        await asyncio.wait_for(again.loop.run(), 60)
        before = world.policy.trained[: state["step"]]
        return again, [int(group) for batch in before for group in batch.per_sequence["group_ids"].unique()]

    again, before = asyncio.run(within())
    after = [int(group) for batch in again.policy.trained for group in batch.per_sequence["group_ids"].unique()]
    assert sorted(before + after) == list(range(8 * PER_STEP))
    assert all(step["staleness/max"] <= 1 for step in metrics_of(again))
    assert any("sampled again" in text for text in again.journal.messages)
