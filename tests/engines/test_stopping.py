"""Stop strings over real tokenizers, of characters and of bytes."""

import pytest
import torch
from engine_calls import generate, load, samples
from rollout_models import CONFIGS, reference_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pentad.engines.hf.engine import EmbeddedEngine
from pentad.engines.hf.stopping import find_stop
from pentad.samples.completion import Completion


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: the printable part of ASCII, from space on."""
    tokenizer = Tokenizer(models.WordLevel({chr(32 + i): i for i in range(95)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("start", range(8))
def test_keeps_up_to_the_completing_token_wherever_the_looks_fall(tokenizer, start):
    tokens = tokenizer.encode("answer: 42 END and more", add_special_tokens=False)
    wanted = len("answer: 42 END")
    assert find_stop(tokenizer, tokens, start, ["zzz", "END"]) == wanted
    assert find_stop(tokenizer, tokens[: wanted - 1], start, ["END"]) is None


def test_a_string_may_span_two_looks_and_many_tokens():
    """Each token is one byte, so that a character is complete only with its last token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level)
    tokens = tokenizer.encode("très 終わり。", add_special_tokens=False)
    wanted = len("très 終わり".encode())
    for start in range(wanted):
        assert find_stop(tokenizer, tokens, start, ["終わり"]) == wanted


def test_engine_ends_at_the_string(tokenizer):
    model = reference_model(CONFIGS["llama"])
    engine = EmbeddedEngine(model.config, tokenizer=tokenizer, batch_size=4)
    load(engine, [(name, parameter.data) for name, parameter in model.named_parameters()], 0)
    prompt = torch.arange(5, 12)

    def stopped_at(*stop: str) -> list[Completion]:
        return generate(engine, samples(prompt, "r", 6, max_tokens=40, stop=stop))

    free = stopped_at()
    texts = [tokenizer.decode(c.response_tokens) for c in free]
    longest = max(range(6), key=lambda i: len(texts[i]))
    stop = texts[longest][12:14]
    for text, before, after in zip(texts, free, stopped_at(stop), strict=True):
        end = text.index(stop) + 2 if stop in text else len(before.response_tokens)
        assert torch.equal(after.response_tokens, before.response_tokens[:end])
        torch.testing.assert_close(after.response_logprobs, before.response_logprobs[:end], atol=5e-5, rtol=0)
    assert stopped_at(stop)[longest].finish_reason == "stop"
    assert len(stopped_at(stop)[longest].response_tokens) == texts[longest].index(stop) + 2
