"""What every engine must do: the words of `pentad.engines.protocol.Engine` as tests.

An engine is shown to keep the contract by a class that inherits the tests and has a fixture `subject`::

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def subject(self) -> Subject: ...

The model has `VOCABULARY` tokens, `POSITIONS` positions and no end-of-sequence token, so responses end where the
request says. Nothing waits for a time: a long response is known to be running when a short one, which was asked for
with it, is there.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from engine_calls import GivenWeights, Weights, change_weights

from pentad.engines.protocol import Engine
from pentad.errors import UserError
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.weights.checksum import checksum
from pentad.weights.proof import WeightMismatchError

VOCABULARY, POSITIONS = 97, 256
SHORT_TOKENS, LONG_TOKENS = 8, 120
TEMPERATURE = 0.8


def _prompt(number: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (3 + 4 * number,), generator=torch.Generator().manual_seed(number))


def _requests(name: str, prompts: int, max_tokens: int) -> list[GenerateRequest]:
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=max_tokens)
    return [
        GenerateRequest(_prompt(number), f"{name} {number}", params, sample)
        for number in range(prompts)
        for sample in range(2)
    ]


SHORT = _requests("short", 3, SHORT_TOKENS)
LONG = _requests("long", 1, LONG_TOKENS)
TOO_LONG = replace(SHORT[0], params=replace(SHORT[0].params, max_tokens=POSITIONS))


@dataclass(frozen=True)
class Subject:
    """An engine under test.

    Attributes:
        make: makes one, without weights.
        weights: a whole set for its model, in the dtype that it takes; the first is a matrix.
        other_weights: another set.
        tolerance: of log-probs.
    """

    make: Callable[[], Engine]
    weights: Weights
    other_weights: Weights
    tolerance: float = 5e-5


Test = Callable[["EngineContract", Subject, Engine], Coroutine[Any, Any, None]]


def _run(test: Test) -> Callable[["EngineContract", Subject], None]:
    """Make a test out of a coroutine that is given an engine with version 3 of the weights."""

    def run(self: "EngineContract", subject: Subject) -> None:
        async def main() -> None:
            engine = subject.make()
            await change_weights(engine, subject.weights, 3)
            try:
                await test(self, subject, engine)
            finally:
                await engine.close()

        asyncio.run(main())

    return run


async def _all(engine: Engine, requests: list[GenerateRequest]) -> list[Completion]:
    return await asyncio.gather(*map(engine.generate, requests))


async def _start_long(engine: Engine) -> list[asyncio.Task[Completion]]:
    """The long responses, each of which has begun and is far from its end."""
    running = [asyncio.create_task(engine.generate(request)) for request in LONG]
    await _all(engine, SHORT)
    assert not any(task.done() for task in running)
    return running


def _same(a: Completion, b: Completion) -> bool:
    return torch.equal(a.response_tokens, b.response_tokens) and torch.equal(a.response_logprobs, b.response_logprobs)


class EngineContract:
    """Inherited by a test class for each engine."""

    def test_nothing_is_generated_without_weights(self, subject: Subject) -> None:
        async def main() -> None:
            engine = subject.make()
            assert engine.version == -1
            assert engine.features.transports
            with pytest.raises(RuntimeError):
                await engine.generate(SHORT[0])
            held = await change_weights(engine, reversed(subject.weights), 3)
            assert engine.version == 3
            assert held == {name: checksum(tensor) for name, tensor in subject.weights}
            await engine.generate(SHORT[0])
            await engine.close()

        asyncio.run(main())

    @pytest.mark.parametrize("fault", ["missing", "twice", "unknown", "misshapen"])
    def test_no_set_of_weights_but_the_right_one(self, subject: Subject, fault: str) -> None:
        (name, tensor), *others = subject.weights
        tensors, named = {
            "missing": (others, name),
            "twice": ([*subject.weights, (name, tensor)], name),
            "unknown": ([*subject.weights, ("no.such.weight", tensor)], "no.such.weight"),
            "misshapen": ([(name, tensor[:-1]), *others], name),
        }[fault]

        async def main(_: object, subject: Subject, engine: Engine) -> None:
            await engine.pause(abort=False)
            with pytest.raises(WeightMismatchError, match=named):
                await engine.load_weights(GivenWeights(tensors), 4)
            await engine.resume()
            assert engine.version == -1
            with pytest.raises(RuntimeError):
                await engine.generate(SHORT[0])
            await change_weights(engine, subject.weights, 5)
            assert (await engine.generate(SHORT[0])).versions.tolist() == [5] * SHORT_TOKENS

        _run(main)(self, subject)

    @_run
    async def test_completions_say_what_was_sampled(self, subject: Subject, engine: Engine) -> None:
        completions = await _all(engine, SHORT)
        sequences = [torch.cat([r.prompt_tokens, c.response_tokens]) for r, c in zip(SHORT, completions, strict=True)]
        scores = await engine.logprobs(sequences, TEMPERATURE)
        for request, completion, scored in zip(SHORT, completions, scores, strict=True):
            assert completion.versions.tolist() == [3] * SHORT_TOKENS
            assert completion.finish_reason == "length"
            own = scored[len(request.prompt_tokens) :]
            torch.testing.assert_close(completion.response_logprobs, own, atol=subject.tolerance, rtol=0)

    @_run
    async def test_the_same_requests_give_the_same_bits(self, subject: Subject, engine: Engine) -> None:
        first = await _all(engine, [*LONG, *SHORT])
        # Whoever asks in the same tick belongs to the same set, whatever else the event loop does meanwhile.
        chatter = asyncio.gather(*(asyncio.sleep(0) for _ in range(50)))
        second = await _all(engine, [*LONG, *SHORT])
        await chatter
        assert all(_same(a, b) for a, b in zip(first, second, strict=True))
        one, other = first[:2]
        assert not torch.equal(one.response_tokens, other.response_tokens), "two samples of a prompt are the same"

    @_run
    async def test_a_stop_token_ends_the_response_and_stays_in_it(self, subject: Subject, engine: Engine) -> None:
        free = await engine.generate(SHORT[0])
        stop = int(free.response_tokens[SHORT_TOKENS // 2])
        kept = free.response_tokens.tolist().index(stop) + 1
        stopped = await engine.generate(replace(SHORT[0], params=replace(SHORT[0].params, stop_token_ids=(stop,))))
        assert stopped.finish_reason == "stop"
        assert torch.equal(stopped.response_tokens, free.response_tokens[:kept])

    @_run
    async def test_a_failed_request_leaves_the_others_alone(self, subject: Subject, engine: Engine) -> None:
        alone = await _all(engine, SHORT)
        beside = [asyncio.create_task(engine.generate(request)) for request in SHORT]
        with pytest.raises((UserError, ValueError)):
            await engine.generate(TOO_LONG)
        assert all(_same(a, b) for a, b in zip(alone, await asyncio.gather(*beside), strict=True))

    @_run
    async def test_a_cancelled_request_leaves_the_others_alone(self, subject: Subject, engine: Engine) -> None:
        undisturbed = await _all(engine, LONG)
        victim, other = await _start_long(engine)
        victim.cancel()
        assert torch.equal((await other).response_tokens, undisturbed[1].response_tokens)
        with pytest.raises(asyncio.CancelledError):
            await victim

    @_run
    async def test_abort_gives_what_there_is(self, subject: Subject, engine: Engine) -> None:
        undisturbed = await _all(engine, LONG)
        running = await _start_long(engine)
        await engine.pause(abort=True)
        for whole, part in zip(undisturbed, await asyncio.gather(*running), strict=True):
            count = len(part.response_tokens)
            assert part.finish_reason == "abort"
            assert 0 < count < LONG_TOKENS
            assert part.versions.tolist() == [3] * count
            assert torch.equal(part.response_tokens, whole.response_tokens[:count])
        later = asyncio.create_task(engine.generate(SHORT[0]))
        for _ in range(2 * SHORT_TOKENS):  # work that takes longer than the answer would
            await engine.logprobs([SHORT[0].prompt_tokens], TEMPERATURE)
        assert not later.done(), "a request was answered while the engine was paused"
        await engine.resume()
        assert (await later).finish_reason == "length"

    @_run
    async def test_running_requests_go_on_under_new_weights(self, subject: Subject, engine: Engine) -> None:
        undisturbed = await _all(engine, LONG)
        running = await _start_long(engine)
        await engine.pause(abort=False)
        await engine.load_weights(GivenWeights(subject.other_weights), 4)
        assert not any(task.done() for task in running)
        await engine.resume()
        for whole, completion in zip(undisturbed, await asyncio.gather(*running), strict=True):
            assert completion.finish_reason == "length"
            assert len(completion.response_tokens) == LONG_TOKENS
            before = int((completion.versions == 3).sum())
            assert completion.versions.tolist() == [3] * before + [4] * (LONG_TOKENS - before)
            assert 0 < before < LONG_TOKENS
            assert torch.equal(completion.response_tokens[:before], whole.response_tokens[:before])

    @_run
    async def test_weights_do_not_change_under_running_requests(self, subject: Subject, engine: Engine) -> None:
        running = await _start_long(engine)
        with pytest.raises(RuntimeError):
            await engine.load_weights(GivenWeights(subject.other_weights), 4)
        assert engine.version == 3
        for completion in await asyncio.gather(*running):
            assert completion.versions.tolist() == [3] * LONG_TOKENS

    @_run
    async def test_sleep_forgets_the_weights(self, subject: Subject, engine: Engine) -> None:
        before = await _all(engine, SHORT)
        await engine.pause(abort=False)
        await engine.sleep()
        assert engine.version == -1
        await engine.wake()
        assert engine.version == -1
        waiting = asyncio.create_task(engine.generate(SHORT[0]))
        await asyncio.sleep(0)
        await engine.resume()
        with pytest.raises(RuntimeError):
            await waiting
        await change_weights(engine, subject.weights, 4)
        after = await _all(engine, SHORT)
        assert all(_same(a, b) for a, b in zip(before, after, strict=True))
        assert {int(version) for completion in after for version in completion.versions} == {4}

    @_run
    async def test_logprobs_of_given_tokens(self, subject: Subject, engine: Engine) -> None:
        await engine.pause(abort=False)
        sequences = [request.prompt_tokens for request in SHORT] + [torch.tensor([5])]
        for tokens, scores in zip(sequences, await engine.logprobs(sequences, TEMPERATURE), strict=True):
            assert scores.shape == tokens.shape
            assert scores.dtype == torch.float32
            assert scores[0] == 0
            assert bool((scores[1:] < 0).all())

    @_run
    async def test_close_is_the_end(self, subject: Subject, engine: Engine) -> None:
        running = await _start_long(engine)
        await engine.close()
        for task in running:
            with pytest.raises(RuntimeError):
                await task
        with pytest.raises(RuntimeError):
            await engine.generate(SHORT[0])
        await engine.close()
