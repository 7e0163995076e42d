"""A row of the data as the model gets it, as text.

Invariant: the text is decoded from the tokens that are trained on, special tokens included.
"""

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pentad.config.schema.reward import RewardSettings
from pentad.data.prompts import EncodedExamples, EncodedPrompts
from pentad.data.rows import PromptRow
from pentad.loops.scoring import reward_item
from pentad.rewards.builtin import truth_text
from pentad.rewards.components import components_of
from pentad.rewards.rows import rewards_of

_LONGEST = 2000  # characters of a text that are shown
_SHORT = 100


def rendered(data: EncodedPrompts | EncodedExamples, index: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Lines that show the row at an index: its prompt, or, of examples, what is given and what is trained on."""
    parts: Iterator[tuple[str, Tensor]]
    if isinstance(data, EncodedPrompts):
        parts = iter([("prompt", data.tokens[index])])
    else:
        first = index * data.per_row
        parts = (part for i in range(first, first + data.per_row) for part in example_parts(data, i))
    for title, tokens in parts:
        text = str(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))
        yield f"  {title}, {len(tokens):,} tokens:\n{indented(_cut(text))}"


def reward_call(row: PromptRow, settings: RewardSettings) -> Iterator[str]:
    """Lines that show which rewards score responses to a row, and what they are given."""
    item = reward_item(row, "")
    names = [name for _, name in rewards_of(components_of(settings), item.data_source)]
    yield f"  {' and '.join(names)} {'are' if len(names) > 1 else 'is'} given:"
    truth = "none" if item.ground_truth is None else repr(_line(truth_text(item.ground_truth)))
    given = {"prompt": repr(_line(item.prompt)), "response": "what the model answers", "ground_truth": truth}
    for name, value in given.items():
        yield f"    {name:<12}  {value}"
    yield f"    {'by name':<12}  {item.names}"


def example_parts(encoded: EncodedExamples, index: int) -> Iterator[tuple[str, Tensor]]:
    """An example in runs of tokens that are given or trained on."""
    prompt, rest = encoded.examples[index]
    mask = encoded.mask(index).tolist()
    yield "given", prompt
    begin = 0
    for end in range(1, len(rest) + 1):
        if end == len(rest) or mask[end] != mask[begin]:
            yield "trained on" if mask[begin] else "given", rest[begin:end]
            begin = end


def indented(text: str) -> str:
    """The text with four spaces before each line."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters are not shown ...\n{text[-half:]}"


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 4]} ..."
