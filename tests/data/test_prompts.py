import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from pentad.config.schema.data import DataSettings
from pentad.data.prompts import encode_examples, encode_prompts
from pentad.data.rows import PromptRow
from pentad.errors import UserError

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }} <end> {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ["<bos>", "<end>", "<unk>", "<system>", "<user>", "<assistant>", "one", "two", "three", "be", "brief"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<bos>", eos_token="<end>")
    fast.chat_template = TEMPLATE
    return fast


def settings_for(**more: object) -> DataSettings:
    return DataSettings(train="x.jsonl", **more)


def words(tokens: object) -> str:
    return " ".join(WORDS[i] for i in tokens.tolist())  # type: ignore[attr-defined]


def row(prompt: object, n: int = 1, response: str | None = None) -> PromptRow:
    return PromptRow(f"x.jsonl:{n}", prompt, response=response)  # type: ignore[arg-type]


def test_chat_template_is_written_up_to_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row("one"), row(({"role": "user", "content": "two"},))]
    encoded = encode_prompts(rows, tokenizer, settings_for())
    assert [words(t) for t in encoded.tokens] == ["<user> one <end> <assistant>", "<user> two <end> <assistant>"]
    assert encoded.rows == tuple(rows)
    assert encoded.dropped == 0


def test_system_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_prompts([row("one")], tokenizer, settings_for(system_prompt="be brief"))
    assert words(encoded.tokens[0]) == "<system> be brief <end> <user> one <end> <assistant>"
    conversation = ({"role": "system", "content": "be"}, {"role": "user", "content": "one"})
    with pytest.raises(UserError, match=r"x.jsonl:1.*data.system_prompt is set too"):
        encode_prompts([row(conversation)], tokenizer, settings_for(system_prompt="be brief"))


def test_text_is_used_as_it_is(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_prompts([row("one two")], tokenizer, settings_for(template="text"))
    assert words(encoded.tokens[0]) == "<bos> one two"
    with pytest.raises(UserError, match="needs plain text"):
        encode_prompts([row(({"role": "user", "content": "two"},))], tokenizer, settings_for(template="text"))
    with pytest.raises(UserError, match="uses the prompts as they are"):
        encode_prompts([row("one")], tokenizer, settings_for(template="text", system_prompt="be brief"))


def test_no_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template") as caught:
        encode_prompts([row("one")], tokenizer, settings_for())
    assert "data.template=text" in caught.value.fix
    assert "model.chat_template=FILE" in caught.value.fix


def test_template_that_refuses_a_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"x.jsonl:7.*roles user, tool: no tools here"):
        conversation = ({"role": "user", "content": "one"}, {"role": "tool", "content": "two"})
        encode_prompts([row(conversation, 7)], tokenizer, settings_for())


ROWS = [row("one", 1), row("one two three", 2), row("one two", 3)]  # 4, 6 and 5 tokens


def test_too_long_prompts_are_an_error_that_names_the_smallest_limit(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"2 of 3 prompts.*max_prompt_tokens=4.*x.jsonl:2 with 6 tokens") as caught:
        encode_prompts(ROWS, tokenizer, settings_for(max_prompt_tokens=4))
    assert "data.max_prompt_tokens=6" in caught.value.fix
    assert len(encode_prompts(ROWS, tokenizer, settings_for(max_prompt_tokens=6))) == 3


def test_too_long_prompts_are_dropped_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_prompts(ROWS, tokenizer, settings_for(max_prompt_tokens=5, too_long="drop"))
    assert [r.id for r in encoded.rows] == ["x.jsonl:1", "x.jsonl:3"]
    assert [len(t) for t in encoded.tokens] == [4, 5]
    assert encoded.dropped == 1


def test_dropping_all_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="all prompts are longer") as caught:
        encode_prompts(ROWS, tokenizer, settings_for(max_prompt_tokens=3, too_long="drop"))
    assert caught.value.fix == "set data.max_prompt_tokens=6"


def test_prompt_without_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(UserError, match=r"x.jsonl:1: the prompt has no tokens"):
        encode_prompts([row("one")], tokenizer, settings_for())


def test_examples_end_with_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [row("one", 1, "two"), row("one two three", 2, "one"), row("two", 3, "three two")]
    encoded = encode_examples(rows, tokenizer, settings_for(max_prompt_tokens=4, too_long="drop"))
    assert [(words(p), words(r)) for p, r in encoded.examples] == [
        ("<user> one <end> <assistant>", "two <end>"),
        ("<user> two <end> <assistant>", "three two <end>"),
    ]
    assert encoded.dropped == 1


def test_examples_need_an_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        encode_examples([row("one", 1, "two")], tokenizer, settings_for())
