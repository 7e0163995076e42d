"""Finding the token that completes a stop string.

Invariant: the answer does not depend on how many tokens were sampled between two looks.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# Tokens may carry no text of their own (a part of a character, a control token).
_SLACK_TOKENS = 4


def find_stop(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], start: int, stops: Sequence[str]
) -> int | None:
    """How many tokens to keep so that the response ends with the token that completes a stop string.

    Args:
        tokens: of a response.
        start: tokens that were looked at before; no stop string ends within them.
        stops: not empty, none of them empty.

    Returns:
        the number of tokens to keep, or None when no stop string has appeared.
    """
    # A token holds at least one byte of text, so a string that ends in a new token begins no earlier than this.
    reach = max(len(stop.encode()) for stop in stops) + _SLACK_TOKENS
    begin = max(0, start - reach)
    if not _contains(tokenizer, tokens[begin:], stops):
        return None
    for end in range(start + 1, len(tokens) + 1):
        if _contains(tokenizer, tokens[begin:end], stops):
            return end
    return None


def _contains(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return any(stop in text for stop in stops)
