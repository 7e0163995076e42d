"""The oracle is a plain forward pass of the same transformers model, one sequence at a time."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from engine_calls import GivenWeights, generate, load, samples
from rollout_models import CONFIGS, checkpoint, endless, full_logprobs, reference_model

from pentad.engines.hf.decoder import DecoderLimits
from pentad.engines.hf.engine import EmbeddedEngine
from pentad.engines.hf.model import HeldModel
from pentad.errors import UserError
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams

FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def engine_for(model, **kwargs) -> EmbeddedEngine:
    engine = EmbeddedEngine(model.config, **kwargs)
    load(engine, checkpoint(model).items(), 3)
    return engine


def prompts(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Ragged, the first of one token only."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 97, (1 + (7 * i) % 23,), generator=generator) for i in range(count)]


def requests(count: int, n: int = 1, **params) -> list[GenerateRequest]:
    """`n` samples of each prompt."""
    return [request for i, p in enumerate(prompts(count)) for request in samples(p, f"r{i}", n, **params)]


def sequence(request: GenerateRequest, completion: Completion) -> torch.Tensor:
    return torch.cat([request.prompt_tokens, completion.response_tokens])


def same(a: Sequence[Completion], b: Sequence[Completion]) -> bool:
    return all(torch.equal(x.response_tokens, y.response_tokens) for x, y in zip(a, b, strict=True))


@FAMILIES
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.8), (0.0, 1.0)])
def test_logprobs_agree_with_a_full_forward(family, temperature, top_p):
    model = reference_model(CONFIGS[family])
    engine = engine_for(model, batch_size=5)
    asked = requests(9, temperature=temperature, top_p=top_p, max_tokens=33, n=2)
    finish_reasons = set()
    for request, completion in zip(asked, generate(engine, asked), strict=True):
        tokens = sequence(request, completion)
        expected = full_logprobs(model, tokens, temperature or 1.0)[len(request.prompt_tokens) :]
        assert completion.versions.tolist() == [3] * len(completion.response_tokens)
        torch.testing.assert_close(completion.response_logprobs, expected, atol=5e-5, rtol=0)
        ended = completion.response_tokens[-1] == 0
        assert completion.finish_reason == ("stop" if ended else "length")
        assert not (completion.response_tokens[:-1] == 0).any()
        assert ended or len(completion.response_tokens) == 33
        finish_reasons.add(completion.finish_reason)
    if temperature == 1.0:
        assert finish_reasons == {"stop", "length"}


@FAMILIES
def test_greedy_takes_the_likeliest_token(family):
    model = reference_model(CONFIGS[family])
    asked = requests(5, temperature=0, max_tokens=12)
    for request, completion in zip(asked, generate(engine_for(model, batch_size=3), asked), strict=True):
        tokens = sequence(request, completion)
        with torch.no_grad():
            best = model(input_ids=tokens[None]).logits[0].argmax(-1)
        start = len(request.prompt_tokens)
        assert torch.equal(best[start - 1 : -1], tokens[start:])


def test_completions_do_not_depend_on_the_batch():
    model = reference_model(CONFIGS["qwen3"])
    asked = [
        *requests(7, max_tokens=30, n=3),
        *(GenerateRequest(p, f"s{i}", SamplingParams(top_p=0.7, max_tokens=9)) for i, p in enumerate(prompts(4, 1))),
        *(
            GenerateRequest(p, f"t{i}", SamplingParams(temperature=0, max_tokens=20))
            for i, p in enumerate(prompts(2, 2))
        ),
    ]
    together = generate(engine_for(model, batch_size=6), asked)
    assert same(together, generate(engine_for(model, batch_size=64), asked))
    assert same(together, generate(engine_for(model, batch_size=4), asked[::-1])[::-1])
    as_on_gpu = engine_for(model, batch_size=32, limits=DecoderLimits.of(torch.device("cuda")))
    assert same(together, generate(as_on_gpu, asked))
    small_passes = DecoderLimits(steps_per_look=5, length_step=8, prefill_tokens=30, shaped_rows=True)
    assert same(together, generate(engine_for(model, batch_size=16, limits=small_passes), asked))
    alone = engine_for(model, batch_size=1)
    assert same(together, [generate(alone, [request])[0] for request in asked])


def test_requests_may_come_at_any_time():
    """Also longer ones, which need longer buffers, while others run; the oracle is each request alone."""
    model = reference_model(endless(CONFIGS["qwen3"]))
    asked = requests(6, max_tokens=20) + [GenerateRequest(p, "l", SamplingParams(max_tokens=80)) for p in prompts(3)]

    async def one_by_one(engine: EmbeddedEngine) -> list[Completion]:
        tasks = []
        for request in asked:
            tasks.append(asyncio.create_task(engine.generate(request)))
            if len(tasks) % 3 == 0:
                await tasks[len(tasks) // 2]
        return await asyncio.gather(*tasks)

    together = asyncio.run(one_by_one(engine_for(model, batch_size=3)))
    assert same(together, [generate(engine_for(model), [request])[0] for request in asked])
    for request, completion in zip(asked, together, strict=True):
        expected = full_logprobs(model, sequence(request, completion))[len(request.prompt_tokens) :]
        torch.testing.assert_close(completion.response_logprobs, expected, atol=5e-5, rtol=0)


def passes_of(engine: EmbeddedEngine) -> list[list[int]]:
    """Rows and width of each forward pass from now on."""
    passes: list[list[int]] = []
    engine._model.module.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(list(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return passes


def test_the_requests_of_a_tick_are_one_set_and_samples_share_a_prefill():
    engine = engine_for(reference_model(endless(CONFIGS["qwen3"])))
    passes = passes_of(engine)
    asked = [*samples(torch.arange(1, 21), "a", 7, max_tokens=2), *samples(torch.arange(5, 15), "b", 5, max_tokens=2)]
    generate(engine, asked)
    assert passes == [[2, 19], [12, 1], [12, 1]]


def test_a_cancelled_request_is_not_decoded_further():
    engine = engine_for(reference_model(endless(CONFIGS["qwen3"])))
    passes = passes_of(engine)
    long, short, longer = (
        GenerateRequest(p, "r", SamplingParams(max_tokens=n)) for p, n in zip(prompts(3), (200, 4, 20), strict=True)
    )

    async def main() -> None:
        victim, first, second = (asyncio.create_task(engine.generate(request)) for request in (long, short, longer))
        await first
        victim.cancel()
        await second
        before = len(passes)
        await engine.pause(abort=False)
        await engine.resume()
        await engine.generate(short)
        # One prefill and four steps: nothing else was decoded.
        assert len(passes) - before <= 5
        assert passes[-1] == [1, 1]

    asyncio.run(main())
    assert len(passes) < 40


def test_seed_request_and_sample_each_change_the_random_numbers():
    model = reference_model(CONFIGS["llama"])
    prompt = prompts(3)[2]
    engine, other = engine_for(model), engine_for(model, seed=5)

    def sampled(request_id: str, seed: int, which: EmbeddedEngine = engine) -> list[list[int]]:
        asked = samples(prompt, request_id, 2, max_tokens=8, seed=seed)
        return [completion.response_tokens.tolist() for completion in generate(which, asked)]

    variants = [*sampled("a", 1), *sampled("b", 1), *sampled("a", 2), *sampled("a", 1, other)]
    assert len({tuple(v) for v in variants}) == 8
    assert sampled("a", 1) == variants[:2]


def test_samples_follow_the_distribution():
    model = reference_model(CONFIGS["qwen2"])
    prompt, temperature = prompts(4)[3], 0.5
    asked = samples(prompt, "r", 6000, temperature=temperature, max_tokens=1)
    drawn = torch.stack([c.response_tokens[0] for c in generate(engine_for(model, batch_size=1000), asked)])
    with torch.no_grad():
        probs = torch.softmax(model(input_ids=prompt[None]).logits[0, -1] / temperature, dim=-1)
    observed = torch.bincount(drawn, minlength=97) / len(drawn)
    # For an honest sampler of V outcomes and N draws the sum is sqrt(2 V / (pi N)) at most, on average.
    assert (observed - probs).abs().sum() < 1.25 * (97 / 6000) ** 0.5


def test_top_p_never_leaves_the_nucleus():
    model = reference_model(CONFIGS["qwen2"])
    prompt = prompts(4)[3]
    asked = samples(prompt, "r", 500, top_p=0.5, max_tokens=1)
    drawn = {int(c.response_tokens[0]) for c in generate(engine_for(model), asked)}
    with torch.no_grad():
        probs, tokens = torch.softmax(model(input_ids=prompt[None]).logits[0, -1], dim=-1).sort(descending=True)
    nucleus = tokens[: int((probs.cumsum(0) < 0.5).sum()) + 1].tolist()
    assert drawn == set(nucleus)


def test_a_model_without_end_tokens_runs_to_the_limit():
    engine = engine_for(reference_model(endless(CONFIGS["qwen3"])))
    for completion in generate(engine, requests(3, max_tokens=40)):
        assert (len(completion.response_tokens), completion.finish_reason) == (40, "length")


def test_probe_scores_given_sequences():
    model = reference_model(CONFIGS["qwen3"])
    sequences = prompts(6)
    scored = asyncio.run(engine_for(model).logprobs(sequences, temperature=0.8))
    for tokens, scores in zip(sequences, scored, strict=True):
        torch.testing.assert_close(scores, full_logprobs(model, tokens, 0.8), atol=5e-5, rtol=0)


@pytest.mark.parametrize("asleep", [False, True])
def test_keys_and_values_are_computed_anew_under_new_weights(asleep):
    """Each token's log-prob is that of a full forward pass with the weights of its version."""
    config = endless(CONFIGS["llama"])
    models = {version: reference_model(config, seed=version) for version in (1, 2, 3)}
    asked = [*requests(2, max_tokens=90), *requests(5, max_tokens=30), *requests(1, max_tokens=2)]

    async def main() -> list[Completion]:
        engine = EmbeddedEngine(config, batch_size=4)
        await engine.load_weights(GivenWeights(checkpoint(models[1]).items()), 1)
        tasks = [asyncio.create_task(engine.generate(request)) for request in asked]
        for version, first in ((2, 3), (3, 4)):
            await tasks[first]
            await engine.pause(abort=False)
            if asleep:
                await engine.sleep()
                await engine.wake()
            await engine.load_weights(GivenWeights(checkpoint(models[version]).items()), version)
            await engine.resume()
        return await asyncio.gather(*tasks)

    seen = set()
    for request, completion in zip(asked, asyncio.run(main()), strict=True):
        assert len(completion.response_tokens) == request.params.max_tokens
        tokens, start = sequence(request, completion), len(request.prompt_tokens)
        expected = torch.stack([full_logprobs(models[version], tokens)[start:] for version in (1, 2, 3)])
        expected = expected.gather(0, completion.versions.long()[None] - 1)[0]
        torch.testing.assert_close(completion.response_logprobs, expected, atol=5e-5, rtol=0)
        seen.add(tuple(completion.versions.unique().tolist()))
    assert (1, 2, 3) in seen


def test_random_numbers_go_on_where_a_pause_interrupted_them():
    """The same weights again change nothing but rounding."""
    model = reference_model(endless(CONFIGS["qwen3"]))
    asked = [*requests(2, max_tokens=60), *requests(2, max_tokens=4)]
    engine = engine_for(model)

    async def interrupted() -> list[Completion]:
        tasks = [asyncio.create_task(engine.generate(request)) for request in asked]
        await tasks[-1]
        await engine.pause(abort=False)
        await engine.load_weights(GivenWeights(checkpoint(model).items()), 4)
        await engine.resume()
        return await asyncio.gather(*tasks)

    assert same(generate(engine_for(model), asked), asyncio.run(interrupted()))


def test_released_weights_are_kept_nowhere():
    """Embeddings are tied here, so one storage serves two parameters."""
    reference = reference_model(CONFIGS["qwen3"])
    model = HeldModel(reference.config, torch.float32, torch.device("cpu"))
    sequences, weights = prompts(3), checkpoint(reference).items()
    sums = model.load(weights)
    before = model.logprobs(sequences, 1.0)

    def held_bytes() -> int:
        return sum(parameter.untyped_storage().nbytes() for parameter in model.module.parameters())

    held = held_bytes()
    model.release()
    assert held_bytes() == 0
    model.allocate()
    assert held_bytes() == held == sum(4 * parameter.numel() for parameter in reference.parameters())
    assert model.load(weights) == sums
    assert all(torch.equal(a, b) for a, b in zip(before, model.logprobs(sequences, 1.0), strict=True))


def test_refuses_sequences_longer_than_the_model():
    with pytest.raises(UserError, match="256 positions"):
        generate(engine_for(reference_model(CONFIGS["llama"])), requests(1, max_tokens=256))


def test_refuses_sliding_window_layers():
    config = CONFIGS["qwen3"].__class__(**{**CONFIGS["qwen3"].to_dict(), "layer_types": ["sliding_attention"] * 2})
    with pytest.raises(UserError, match="sliding_attention"):
        EmbeddedEngine(config)


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer"):
        generate(engine_for(reference_model(CONFIGS["llama"])), requests(1, stop=["x"]))
