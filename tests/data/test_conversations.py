"""Which tokens of a conversation are trained on; the oracles are transformers' own mask and the text itself."""

import re
from typing import Any

import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast

from pentad.config.schema.data import DataSettings
from pentad.data.prompts import encode_examples, encode_prompts
from pentad.data.rows import PromptRow
from pentad.errors import UserError
from pentad.loops.sources import Examples

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# No generation prompt: the answer begins where the question ends, with a space.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
# Reasoning is left out of all turns but the last, as in Qwen3's template.
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNENDED = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

SYSTEM, HI, BYE = (
    {"role": r, "content": c} for r, c in (("system", "Be brief."), ("user", "Hi?"), ("user", "\nBye!  "))
)
HELLO, SO_LONG = ({"role": "assistant", "content": c} for c in ("Hello, hello", "So\n\nlong"))
TALK = (SYSTEM, HI, HELLO, BYE, SO_LONG)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, some of which would reach over the ends of turns."""
    text = ["Hello, hello", "So\n\nlong", "\nBye!  ", "Hi?", "assistant\n\nassistant\nHe", "] Hello", "\n\n"] * 20
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )


def row(*messages: dict[str, str], **more: Any) -> PromptRow:
    return PromptRow("x.jsonl:1", messages[:-1], conversation=messages, **more)


def encode(tokenizer: PreTrainedTokenizerFast, one: PromptRow, template: str = CHATML, **more: Any) -> Any:
    tokenizer.chat_template = template
    return encode_examples([one], tokenizer, DataSettings(train="x.jsonl", **more))


def runs(tokenizer: PreTrainedTokenizerFast, encoded: Any) -> list[tuple[bool, str]]:
    """The text in runs that are trained on or not."""
    prompt, rest = encoded.examples[0]
    done: list[tuple[bool, list[int]]] = [(False, prompt.tolist())]
    for token, trained in zip(rest.tolist(), encoded.mask(0).tolist(), strict=True):
        if done[-1][0] != trained:
            done.append((trained, []))
        done[-1][1].append(token)
    return [(trained, tokenizer.decode(tokens)) for trained, tokens in done]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_every_answer_is_trained_on_through_its_end(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    encoded = encode(tokenizer, row(*TALK), template)
    found = runs(tokenizer, encoded)
    assert [text for trained, text in found if trained] == ["Hello, hello<|im_end|>", "So\n\nlong<|im_end|>"]
    whole = tokenizer.apply_chat_template(list(TALK), tokenize=False)
    assert "".join(text for _, text in found) == whole.removesuffix("\n")
    assert [text for trained, text in found if trained] == re.findall(
        r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", whole, re.S
    )


def test_the_templates_marks_agree_with_transformers(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode(tokenizer, row(*TALK), MARKED)
    theirs = tokenizer.apply_chat_template(list(TALK), return_dict=True, return_assistant_tokens_mask=True)
    trained = [t for t, on in zip(theirs["input_ids"], theirs["assistant_masks"], strict=True) if on]
    assert encoded.examples[0][1][encoded.mask(0)].tolist() == trained


def test_prompt_and_answers_are_the_tokens_of_generation(tokenizer: PreTrainedTokenizerFast) -> None:
    """Merges do not reach over the end of the generation prompt, as they cannot when the model answers."""
    encoded = encode(tokenizer, row(*TALK), loss_on="last")
    prompt = encode_prompts([PromptRow("x", TALK[:-1])], tokenizer, DataSettings(train="x"))
    assert torch.equal(encoded.examples[0][0], prompt.tokens[0])
    answer = tokenizer("So\n\nlong<|im_end|>", add_special_tokens=False)["input_ids"]
    assert encoded.examples[0][1].tolist() == answer
    assert encoded.masks == (), "all of the response is trained on"
    both = encode(tokenizer, row(*TALK))
    assert torch.cat(both.examples[0])[-len(answer) :].tolist() == answer


def test_a_template_without_generation_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    found = runs(tokenizer, encode(tokenizer, row(*TALK[1:]), MISTRAL))
    assert found[0] == (False, "<s>[INST] Hi? [/INST]")
    assert [text for trained, text in found if trained] == [" Hello, hello</s>", " So\n\nlong</s>"]


def test_a_template_that_rewrites_earlier_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = {"role": "assistant", "content": "<think>hm</think>Hello"}
    with pytest.raises(UserError, match=r"x\.jsonl:1: .* writes message 1 otherwise once others follow") as caught:
        encode(tokenizer, row(HI, thought, BYE, thought), REASONING)
    assert "data.loss_on=last" in caught.value.fix
    found = runs(tokenizer, encode(tokenizer, row(HI, thought, BYE, thought), REASONING, loss_on="last"))
    assert [text for trained, text in found if trained] == ["<think>hm</think>Hello<|im_end|>"]
    assert "<think>" not in found[0][1]


def test_a_template_that_does_not_end_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="does not end the assistant's turn with a special token"):
        encode(tokenizer, row(*TALK), UNENDED)


def test_only_what_is_given_as_the_completion_is_trained_on(tokenizer: PreTrainedTokenizerFast) -> None:
    found = runs(tokenizer, encode(tokenizer, row(*TALK, first=4)))
    assert [text for trained, text in found if trained] == ["So\n\nlong<|im_end|>"]
    found = runs(tokenizer, encode(tokenizer, row(*TALK[1:], first=3), system_prompt="Be brief."))
    assert [text for trained, text in found if trained] == ["So\n\nlong<|im_end|>"]
    assert found[0][1].startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_limits(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML
    short, long = row(HI, HELLO), row(*TALK)
    lengths = [sum(map(len, encode(tokenizer, one).examples[0])) for one in (short, long)]
    settings = DataSettings(train="x", max_tokens=lengths[0], too_long="drop")
    encoded = encode_examples([long, short], tokenizer, settings)
    assert (encoded.rows, encoded.dropped, len(encoded.examples), encoded.masks) == ((short,), 1, 1, (None,))
    with pytest.raises(UserError, match=rf"1 of 2 examples are longer than data.max_tokens={lengths[0]}"):
        encode_examples([long, short], tokenizer, DataSettings(train="x", max_tokens=lengths[0]))
    with pytest.raises(UserError, match="needs plain text"):
        encode_examples([short], tokenizer, DataSettings(train="x", template="text"))


class InOrder:
    def next(self, n: int) -> list[int]:
        return list(range(n))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


async def take(encoded: Any) -> Any:
    return (await Examples(encoded, InOrder(), len(encoded)).take(1, ()))[0]


def test_batches_have_the_masks(tokenizer: PreTrainedTokenizerFast) -> None:
    import asyncio

    tokenizer.chat_template = CHATML
    rows = [row(*TALK), PromptRow("x.jsonl:2", (HI,), response="Hello, hello")]
    encoded = encode_examples(rows, tokenizer, DataSettings(train="x"))
    batch = asyncio.run(take(encoded))
    trained = tokenizer.decode(batch.tokens[batch.loss_mask])
    assert trained == "Hello, hello<|im_end|>So\n\nlong<|im_end|>Hello, hello</s>"
