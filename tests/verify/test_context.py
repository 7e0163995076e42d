"""Context parallelism of models whose heads do not divide: keys and values are gathered.

All layouts here agree with one process within 1e-4; faults of the gathering are found.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch

import pentad.kernels.attention as kernel
import pentad.trainers.megatron.attention as attention
from pentad.families.hf_config import facts_from_config
from pentad.layout import parse_allocation
from pentad.layout.context import context_method
from pentad.verify.models import tiny_config, write_random_model
from pentad.verify.verification import Verification

# Name -> family, layers, heads, key/value heads.
MODELS = {
    "qwen3 6/2": ("qwen3", 2, 6, 2),
    "qwen3 6/3": ("qwen3", 4, 6, 3),
    "llama 5/1": ("llama_tied", 2, 5, 1),
    "qwen2 3/3": ("qwen2", 2, 3, 3),
    "qwen3_moe 6/2": ("qwen3_moe", 2, 6, 2),
    "qwen2_moe 5/5": ("qwen2_moe", 2, 5, 5),
}
SHORT = [("qwen3 6/2", "t2c2"), ("qwen2_moe 5/5", "c2e2")]
LONG = [
    *[("qwen3 6/2", sizes) for sizes in ("c4", "d2c4", "c5")],
    *[("qwen3 6/3", sizes) for sizes in ("c2", "c4", "p2v2c4")],
    *[("llama 5/1", sizes) for sizes in ("c2p2", "c3", "c4")],
    *[("qwen2 3/3", sizes) for sizes in ("c2p2", "t3c2")],
    *[("qwen3_moe 6/2", sizes) for sizes in ("c4e2", "t2c2e2", "t2c2x2")],
    *[("qwen2_moe 5/5", sizes) for sizes in ("c2p2e2", "d2c2e4", "c3")],
]


@pytest.fixture(scope="module")
def verification(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Verification]]:
    """The verification of a model of `MODELS` in fp32."""
    folder, made = tmp_path_factory.mktemp("heads"), []

    @cache
    def make(name: str) -> Verification:
        family, layers, heads, kv_heads = MODELS[name]
        config = tiny_config(family, layers=layers)
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = heads, kv_heads, 16
        config.hidden_size = 16 * heads
        write_random_model(config, folder / name.replace("/", "-"), torch.float32)
        made.append(Verification(folder / name.replace("/", "-"), deadline_s=90.0))
        return made[-1]

    yield make
    for one in made:
        one.close()


def gathers(name: str, sizes: str) -> bool:
    family, _, heads, kv_heads = MODELS[name]
    facts = facts_from_config(
        tiny_config(family).to_dict() | {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    )
    return context_method(facts, parse_allocation(f"megatron:{sizes}").trainer.layout) == "all_gather"


@pytest.mark.parametrize(
    ("name", "sizes"), [*SHORT, *(pytest.param(*case, marks=pytest.mark.long) for case in LONG)], ids=str
)
def test_gathering_agrees_with_one_process(name, sizes, verification):
    report = verification(name).check(parse_allocation(f"megatron:{sizes}").trainer.layout)
    assert gathers(name, sizes)
    assert report.passed, report.problems
    assert all(found.value <= 1e-4 for found in report.quantities.values())


def gradients_of_keys_not_summed(patch: pytest.MonkeyPatch) -> None:
    """A rank's keys get the gradient of its own queries only."""
    right = attention.gather_from_sequence_parallel_region
    patch.setattr(attention, "gather_from_sequence_parallel_region", partial(right, tensor_parallel_output_grad=False))


def mask_from_the_start(patch: pytest.MonkeyPatch) -> None:
    """The first query stands beside the first key."""
    right = kernel.scaled_dot_product_attention

    def wrong(*tensors: Any, attn_mask: Any, is_causal: bool, **rest: Any) -> Any:
        return right(*tensors, is_causal=True, **rest)

    patch.setattr(kernel, "scaled_dot_product_attention", wrong)


def keys_in_the_order_of_ranks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention, "in_order", lambda gathered, ranks: gathered)


FAULTS = {
    gradients_of_keys_not_summed: r"gradients: .*self_attn\.[kv]_(proj|norm)",
    mask_from_the_start: r"log-probs: .*: sample 1\d\d \(",
    keys_in_the_order_of_ranks: r"log-probs: .*: sample 1\d\d \(",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_found(fault, verification, monkeypatch):
    name, sizes = SHORT[1]
    compared = verification(name)
    fault(monkeypatch)
    report = compared.check(parse_allocation(f"megatron:{sizes}").trainer.layout)
    assert not report.error, report.error
    assert any(re.search(FAULTS[fault], line) for line in report.problems), report.problems
