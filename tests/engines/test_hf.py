"""The oracle is a plain forward pass of the same transformers model, one sequence at a time."""

import itertools

import pytest
import torch
from rollout_models import CONFIGS, full_logprobs, reference_model
from transformers.core_model_loading import revert_weight_conversion

from pentad.engines.hf.decoder import DecoderLimits
from pentad.engines.hf.engine import EmbeddedEngine
from pentad.engines.protocol import RolloutEngine
from pentad.errors import UserError
from pentad.samples.batch import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.weights.proof import WeightMismatchError

FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def checkpoint(model) -> dict[str, torch.Tensor]:
    """What a trainer would send: the tensors of the model's Hugging Face checkpoint."""
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    return revert_weight_conversion(model, parameters)


def engine_for(model, **kwargs) -> EmbeddedEngine:
    engine = EmbeddedEngine(model.config, **kwargs)
    engine.load_weights(checkpoint(model).items(), version=3)
    return engine


def prompts(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Ragged, the first of one token only."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 97, (1 + (7 * i) % 23,), generator=generator) for i in range(count)]


def requests(count: int, **params) -> list[GenerateRequest]:
    return [GenerateRequest(p, f"r{i}", SamplingParams(**params)) for i, p in enumerate(prompts(count))]


def sequence(completion: Completion) -> torch.Tensor:
    return torch.cat([completion.prompt_tokens, completion.response_tokens])


def same(a: list[list[Completion]], b: list[list[Completion]]) -> bool:
    pairs = zip(itertools.chain(*a), itertools.chain(*b), strict=True)
    return all(torch.equal(x.response_tokens, y.response_tokens) for x, y in pairs)


@FAMILIES
@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.8), (0.0, 1.0)])
def test_logprobs_agree_with_a_full_forward(family, temperature, top_p):
    model = reference_model(CONFIGS[family])
    engine: RolloutEngine = engine_for(model, batch_size=5)
    asked = requests(9, temperature=temperature, top_p=top_p, max_tokens=33, n=2)
    groups = engine.generate(asked)
    assert [len(group) for group in groups] == [2] * 9
    finish_reasons = set()
    for request, completion in ((r, c) for r, group in zip(asked, groups, strict=True) for c in group):
        tokens = sequence(completion)
        expected = full_logprobs(model, tokens, temperature or 1.0)[len(request.prompt_tokens) :]
        assert completion.weight_version == 3
        assert torch.equal(completion.prompt_tokens, request.prompt_tokens)
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
    for (completion,) in engine_for(model, batch_size=3).generate(requests(5, temperature=0, max_tokens=12)):
        tokens = sequence(completion)
        with torch.no_grad():
            best = model(input_ids=tokens[None]).logits[0].argmax(-1)
        start = len(completion.prompt_tokens)
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
    together = engine_for(model, batch_size=6).generate(asked)
    assert same(together, engine_for(model, batch_size=64).generate(asked))
    assert same(together, engine_for(model, batch_size=4).generate(asked[::-1])[::-1])
    as_on_gpu = engine_for(model, batch_size=32, limits=DecoderLimits.of(torch.device("cuda")))
    assert same(together, as_on_gpu.generate(asked))
    small_passes = DecoderLimits(steps_per_look=5, length_step=8, prefill_tokens=30, shaped_rows=True)
    assert same(together, engine_for(model, batch_size=16, limits=small_passes).generate(asked))
    alone = engine_for(model, batch_size=1)
    assert same(together, [alone.generate([request])[0] for request in asked])


def test_seed_request_and_sample_each_change_the_random_numbers():
    model = reference_model(CONFIGS["llama"])
    prompt = prompts(3)[2]
    engine, other = engine_for(model), engine_for(model, seed=5)

    def sampled(request_id: str, seed: int, which: EmbeddedEngine = engine) -> list[list[int]]:
        request = GenerateRequest(prompt, request_id, SamplingParams(max_tokens=8, n=2, seed=seed))
        return [c.response_tokens.tolist() for c in which.generate([request])[0]]

    variants = [*sampled("a", 1), *sampled("b", 1), *sampled("a", 2), *sampled("a", 1, other)]
    assert len({tuple(v) for v in variants}) == 8
    assert sampled("a", 1) == variants[:2]


def test_samples_follow_the_distribution():
    model = reference_model(CONFIGS["qwen2"])
    prompt, temperature = prompts(4)[3], 0.5
    request = GenerateRequest(prompt, "r", SamplingParams(temperature=temperature, max_tokens=1, n=6000))
    drawn = torch.stack([c.response_tokens[0] for c in engine_for(model, batch_size=1000).generate([request])[0]])
    with torch.no_grad():
        probs = torch.softmax(model(input_ids=prompt[None]).logits[0, -1] / temperature, dim=-1)
    observed = torch.bincount(drawn, minlength=97) / len(drawn)
    # For an honest sampler of V outcomes and N draws the sum is sqrt(2 V / (pi N)) at most, on average.
    assert (observed - probs).abs().sum() < 1.25 * (97 / 6000) ** 0.5


def test_top_p_never_leaves_the_nucleus():
    model = reference_model(CONFIGS["qwen2"])
    prompt = prompts(4)[3]
    request = GenerateRequest(prompt, "r", SamplingParams(top_p=0.5, max_tokens=1, n=500))
    drawn = {int(c.response_tokens[0]) for c in engine_for(model).generate([request])[0]}
    with torch.no_grad():
        probs, tokens = torch.softmax(model(input_ids=prompt[None]).logits[0, -1], dim=-1).sort(descending=True)
    nucleus = tokens[: int((probs.cumsum(0) < 0.5).sum()) + 1].tolist()
    assert drawn == set(nucleus)


def test_stop_token_stays_in_the_response():
    model = reference_model(CONFIGS["llama"])
    engine = engine_for(model)
    free = engine.generate(requests(4, max_tokens=20))
    victim = max((group[0] for group in free), key=lambda c: len(c.response_tokens))
    row = next(i for i, group in enumerate(free) if group[0] is victim)
    stop_id = int(victim.response_tokens[10])
    stopped = engine.generate(requests(4, max_tokens=20, stop_token_ids=[stop_id]))[row][0]
    first = victim.response_tokens.tolist().index(stop_id)
    assert stopped.finish_reason == "stop"
    assert torch.equal(stopped.response_tokens, victim.response_tokens[: first + 1])


def test_a_model_without_end_tokens_runs_to_the_limit():
    config = CONFIGS["qwen3"].__class__(**{**CONFIGS["qwen3"].to_dict(), "eos_token_id": None})
    for (completion,) in engine_for(reference_model(config)).generate(requests(3, max_tokens=40)):
        assert (len(completion.response_tokens), completion.finish_reason) == (40, "length")


def test_probe_scores_given_sequences():
    model = reference_model(CONFIGS["qwen3"])
    sequences = prompts(6)
    for tokens, scores in zip(sequences, engine_for(model).logprobs(sequences, temperature=0.8), strict=True):
        torch.testing.assert_close(scores, full_logprobs(model, tokens, 0.8), atol=5e-5, rtol=0)


def test_progress_counts_every_completion():
    seen: list[tuple[int, int]] = []
    model = reference_model(CONFIGS["llama"])
    engine_for(model, batch_size=4).generate(requests(5, max_tokens=9, n=2), lambda *at: seen.append(at))
    assert seen == sorted(set(seen))
    assert seen[-1] == (10, 10)


def test_buffers_grow_and_new_weights_are_used():
    model, newer = reference_model(CONFIGS["qwen3"]), reference_model(CONFIGS["qwen3"], seed=1)
    engine = engine_for(model, batch_size=3)
    engine.generate(requests(2, max_tokens=4))
    engine.load_weights(checkpoint(newer).items(), version=4)
    (completion,) = engine.generate([GenerateRequest(prompts(30)[29], "long", SamplingParams(max_tokens=150))])[0]
    expected = full_logprobs(newer, sequence(completion))[len(completion.prompt_tokens) :]
    assert completion.weight_version == 4
    torch.testing.assert_close(completion.response_logprobs, expected, atol=5e-5, rtol=0)


def test_sleep_and_wake_keep_the_weights():
    engine = engine_for(reference_model(CONFIGS["llama"]))
    before, sums = engine.generate(requests(2, max_tokens=5)), engine.checksums()
    engine.sleep()
    with pytest.raises(RuntimeError, match="sleeps"):
        engine.generate(requests(1))
    engine.wake()
    assert engine.checksums() == sums
    assert same(before, engine.generate(requests(2, max_tokens=5)))
    engine.close()
    with pytest.raises(RuntimeError, match="sleeps"):
        engine.generate(requests(1))


def test_refuses_to_generate_without_a_whole_set_of_weights():
    model = reference_model(CONFIGS["llama"])
    engine = EmbeddedEngine(model.config)
    with pytest.raises(RuntimeError, match="load_weights"):
        engine.generate(requests(1))
    engine.load_weights(checkpoint(model).items(), version=0)
    with pytest.raises(WeightMismatchError):
        engine.load_weights(list(checkpoint(model).items())[1:], version=1)
    assert engine.version == -1
    with pytest.raises(RuntimeError, match="load_weights"):
        engine.generate(requests(1))


def test_refuses_sequences_longer_than_the_model():
    with pytest.raises(UserError, match="256 positions"):
        engine_for(reference_model(CONFIGS["llama"])).generate(requests(1, max_tokens=256))


def test_refuses_sliding_window_layers():
    config = CONFIGS["qwen3"].__class__(**{**CONFIGS["qwen3"].to_dict(), "layer_types": ["sliding_attention"] * 2})
    with pytest.raises(UserError, match="sliding_attention"):
        EmbeddedEngine(config)


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match="tokenizer"):
        engine_for(reference_model(CONFIGS["llama"])).generate(requests(1, stop=["x"]))
