"""Which way context parallelism takes follows from the heads and the layout."""

from dataclasses import replace

import pytest

from pentad.families.known_models import known_models
from pentad.layout import Layout, parse_allocation
from pentad.layout.context import context_method
from pentad.layout.validate import check_layout

QWEN7 = known_models()["Qwen/Qwen2.5-7B"]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes", "method"),
    [
        (28, 4, "d2t4", None),
        (28, 4, "c2", "a2a"),
        (28, 4, "t2c2", "a2a"),
        (28, 4, "t4c2", "all_gather"),
        (28, 4, "d2t4p2c2", "all_gather"),
        (28, 4, "c7", "all_gather"),  # 4 key/value heads cannot be repeated for 7 ranks
        (28, 4, "c28", "a2a"),
        (28, 7, "c4", "all_gather"),
        (16, 1, "c4", "a2a"),  # one key/value head is repeated
        (5, 1, "c2", "all_gather"),
        (6, 2, "t2c3", "a2a"),
        (6, 2, "t2c2", "all_gather"),
    ],
)
def test_method(heads: int, kv_heads: int, sizes: str, method: str | None) -> None:
    layout = parse_allocation(f"megatron:{sizes}").trainer.layout
    facts = replace(QWEN7, num_heads=heads, num_kv_heads=kv_heads)
    assert context_method(facts, layout) == method
    assert check_layout(facts, layout) == []


def test_every_size_is_legal() -> None:
    assert all(
        check_layout(QWEN7, Layout(context=size, tensor=tensor)) == [] for size in range(1, 40) for tensor in (1, 2)
    )
