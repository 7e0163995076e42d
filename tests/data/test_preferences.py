"""Pairs of responses: their tokens, and rows that are refused."""

import json
from pathlib import Path

import pytest
import torch

from pentad.config.schema.data import DataSettings
from pentad.data.dataset import load_train_rows
from pentad.data.preferences import EncodedPreferences, encode_preferences
from pentad.errors import UserError


class Letters:
    """A tokenizer with a token a character."""

    eos_token_id = 0
    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def encode(tmp_path: Path, *rows: dict, **settings: object) -> EncodedPreferences:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(train=str(path), template="text", **settings)
    return encode_preferences(load_train_rows(data).rows, Letters(), data)


def test_the_chosen_response_comes_first_and_both_end(tmp_path: Path):
    spoken = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c"}]
    rows = [{"prompt": "a", "good": "b", "rejected": "cd"}, {"prompt": "q", "good": spoken, "rejected": "d"}]
    pairs = encode(tmp_path, *rows, chosen_column="good")
    assert [(prompt.tolist(), answer.tolist()) for prompt, answer in pairs.examples] == [
        ([97], [98, 0]),
        ([97], [99, 100, 0]),
        ([113], [99, 0]),
        ([113], [100, 0]),
    ]
    assert len(pairs) == 2 and all(answer.dtype == torch.int64 for _, answer in pairs.examples)


@pytest.mark.parametrize(
    "row, cause",
    [
        ({"prompt": "a", "chosen": "b"}, "there is no column 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "neither text nor a conversation"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "neither text nor a conversation"),
        ({"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": "c"}, "neither text"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
    ],
)
def test_a_row_without_a_preference_is_refused(tmp_path: Path, row: dict, cause: str):
    with pytest.raises(UserError) as refused:
        encode(tmp_path, row)
    assert cause in refused.value.cause and "pairs.jsonl:1" in refused.value.cause
