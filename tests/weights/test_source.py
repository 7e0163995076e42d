"""A configuration that transformers refuses is told by its file and value."""

import json
from pathlib import Path
from typing import Any

import pytest

from pentad.errors import UserError
from pentad.families.builtin import builtin_config
from pentad.weights.source import load_config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attention_bias": None}, "'attention_bias'"),
        ({"max_position_embeddings": "many"}, "'max_position_embeddings'"),
        ({"num_attention_heads": 7}, "is not a multiple of the number of attention"),
        ({"model_type": "none"}, "none"),
    ],
)
def test_a_value_that_transformers_refuses_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**builtin_config("llama"), **change}))
    with pytest.raises(UserError) as refused:
        load_config(tmp_path)
    assert str(file) in refused.value.cause
    assert told in refused.value.cause
    assert "\n" not in refused.value.cause
