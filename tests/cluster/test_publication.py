"""Real trainer ranks on two pipeline stages and a real engine: roles, publication and export."""

import asyncio
import math
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import channels
import pytest
import torch
from channels import FaultyTransport
from ray import cloudpickle
from tiny import transformers_logprobs
from transformers import AutoModelForCausalLM

from pentad.algorithms.sft import SFTLoss
from pentad.cluster.processes import DeadlineError
from pentad.cluster.publication import PublishedPolicy
from pentad.config.schema.algorithms import SFTSettings
from pentad.errors import UserError
from pentad.record.outcome import RunFailedError
from pentad.samples.batch import Batch
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.weights.mapping import expected_shapes
from pentad.weights.proof import SyncError
from pentad.weights.source import load_config
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.collective import CollectiveTransport

# Workers cannot import the folders of tests.
cloudpickle.register_pickle_by_value(channels)
LOSS = SFTLoss(SFTSettings())


@pytest.fixture(params=["store", "shared", "gloo"])
def either(parts: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The parts, with each transport that needs no GPU in turn."""
    if request.param == "store":
        yield parts
        return
    shapes = expected_shapes(load_config(parts.model))
    largest = 4 * max(math.prod(shape) for shape in shapes.values())
    terms = {"dtype": parts.engines.dtype, "bucket_bytes": largest, "stages": 2, "deadline_s": 60.0}
    if request.param == "gloo":
        opened: Any = CollectiveTransport("gloo", "127.0.0.1", **terms)
    else:
        opened = LocalTransport("shared", **terms)
    with closing(opened) as transport:
        yield replace(parts, transport=transport)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[Any, Path], None]:
    def run(either: Any, tmp_path: Path) -> None:
        # A run has one event loop; a lock that was waited for belongs to it.
        either.engines.revival.lock = asyncio.Lock()
        either.engines.revival._left = 3
        asyncio.run(test(either, tmp_path))

    return run


def batch() -> Batch:
    random = torch.Generator().manual_seed(3)
    return Batch.from_sequences([(torch.randint(1, 9, (3,), generator=random), torch.arange(1, 6)) for _ in range(4)])


def silent(done: int) -> None:
    pass


@in_loop
async def test_what_is_trained_is_published_and_exported(parts: Any, folder: Path) -> None:
    policy, reference = (
        PublishedPolicy(parts.trainers, parts.engines, parts.transport),
        parts.trainers.role("reference"),
    )
    trained = await policy.train(batch(), LOSS, 1.0, silent)
    assert sorted(trained.sample_ids) == batch().sample_ids.tolist()
    assert trained.metrics["train/grad_norm"] > 0
    await policy.publish(1)
    mine, theirs = await asyncio.gather(policy.logprobs(batch(), 1.0, silent), reference.logprobs(batch(), 1.0, silent))
    scored = torch.cat((await parts.engines.logprobs(batch().tokens.split(batch().lengths), 1.0))[0])
    assert float((scored * batch().loss_mask - mine).abs().max()) <= 1e-4
    await policy.export(parts.model, folder / "exported")
    for directory, found in ((parts.model, theirs), (folder / "exported", mine)):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            assert float((transformers_logprobs(model, batch())[0] - found).abs().max()) <= 1e-4
    assert float((mine - theirs).abs().max()) > 1e-2, "the step did nothing; the test shows nothing"
    assert (folder / "exported" / "tokenizer.json").exists()
    with pytest.raises(ValueError, match="no critic model"):
        parts.trainers.role("critic")


@in_loop
async def test_weights_that_arrive_changed_end_the_run(parts: Any, folder: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    transport = FaultyTransport(parts.transport, "changed", name, folder)
    with pytest.raises(SyncError, match=f"to rollout engine 0 failed: {name} arrived changed$"):
        await PublishedPolicy(parts.trainers, parts.engines, transport).publish(2)


@in_loop
async def test_a_late_engine_and_the_tensor_that_it_is_at_are_named(parts: Any, folder: Path) -> None:
    name, gang = "model.embed_tokens.weight", parts.trainers.of("policy").gang
    transport = FaultyTransport(parts.transport, "late", name, folder / "go on")
    usual, gang.deadline_s = gang.deadline_s, 2.0
    try:
        with pytest.raises(DeadlineError, match=rf"rollout engine 0 \(loading {name}\)") as caught:
            await PublishedPolicy(parts.trainers, parts.engines, transport).publish(3)
    finally:
        gang.deadline_s = usual
        (folder / "go on").touch()
    assert "did not finish weight synchronisation within 2 s" in str(caught.value)
    assert "trainer rank 0 (gathering model.layers.0." in str(caught.value)
    assert len(asyncio.all_tasks()) == 1


@in_loop
async def test_an_export_that_cannot_be_written_ends_the_sending(parts: Any, folder: Path) -> None:
    policy = PublishedPolicy(parts.trainers, parts.engines, parts.transport)
    with pytest.raises(UserError, match="exists already"):
        await policy.export(parts.model, folder)
    assert len(asyncio.all_tasks()) == 1
    # The ranks were told, and work on.
    await policy.publish(4)


@in_loop
async def test_an_engine_that_dies_while_it_receives_is_replaced(parts: Any, folder: Path) -> None:
    name, gang = "model.layers.0.mlp.down_proj.weight", parts.engines._gang
    transport = FaultyTransport(parts.transport, "late", name, folder / "go on")
    policy = PublishedPolicy(parts.trainers, parts.engines, transport)
    before = parts.engines.revival.replaced[0]
    publishing = asyncio.create_task(policy.publish(5))
    while await gang.actors[0].activity.remote() != f"loading {name}":
        await asyncio.sleep(0.1)
    os.kill(gang.info(0).pid, signal.SIGKILL)
    (folder / "go on").touch()
    # A request that comes while the engine has no successor, or one without weights, waits until it has them.
    while parts.engines.revival.replaced[0] == before:
        await asyncio.sleep(0.05)
    prompt = batch().tokens[:5]
    asked = asyncio.create_task(parts.engines.generate(GenerateRequest(prompt, "early", SamplingParams(max_tokens=4))))
    await publishing
    assert parts.engines.revival.replaced[0] == before + 1
    async with asyncio.timeout(60):
        assert set((await asked).versions.tolist()) == {5}
    mine = await policy.logprobs(batch(), 1.0, silent)
    scored = torch.cat((await parts.engines.logprobs(batch().tokens.split(batch().lengths), 1.0))[0])
    assert float((scored * batch().loss_mask - mine).abs().max()) <= 1e-4


@in_loop
async def test_an_engine_that_was_replaced_meanwhile_is_not_replaced_again(parts: Any, folder: Path) -> None:
    """Two waits learn of one death; the later one only asks again."""
    policy = PublishedPolicy(parts.trainers, parts.engines, parts.transport)
    await policy.publish(6)
    revival, gang = parts.engines.revival, parts.engines._gang
    before, asked = revival.replaced[0], 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            return "answered"
        error = RunFailedError("rollout engine 0 failed during rollout: EngineFailedError: gone")
        error.died = gang.names[0]
        async with revival.lock:  # another wait was first
            assert await revival.revive(error)
            await revival.publish_again()
        raise error

    assert await revival.asked(ask) == "answered"
    assert (asked, revival.replaced[0]) == (2, before + 1)
