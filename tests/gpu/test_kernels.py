"""On a GPU, a training step by the fast versions is as near to float32 as one by the plain versions."""

from functools import cache

import pytest
import torch
from kernel_step import CONFIGS, step
from tiny import distance
from torch import Tensor

from pentad.kernels.selection import Kernels, select_kernels
from pentad.verify.processes import Ranks

# Attention over packs has no plain version in half precision.
PLAIN = Kernels(attention="varlen")


@cache
def result(name: str, dtype: str, kernels: Kernels) -> dict[str, Tensor]:
    with Ranks(1, "spawn") as ranks:
        return ranks.call(step, 1, name, dtype, kernels, deadline_s=200)[0]


@pytest.mark.parametrize("setting", ["torch", "auto"])
@pytest.mark.parametrize("name", CONFIGS)
def test_fast_is_as_near_to_float32_as_plain(name, setting):
    kernels = select_kernels(torch.device("cuda"), torch.bfloat16, setting)
    if setting == "auto" and (kernels.mlp, kernels.attention) != ("quack", "flash4"):
        pytest.skip("pentad[kernels] is not installed")
    exact = result(name, "fp32", Kernels())
    plain, fast = result(name, "bf16", PLAIN), result(name, "bf16", kernels)
    assert fast.keys() == exact.keys()
    distances = {key: (distance(fast[key], value), distance(plain[key], value)) for key, value in exact.items()}
    # A single number may come near by chance: the norm has a bound of its own.
    assert distances.pop("norm")[0] <= 2e-2
    farther = {key: pair for key, pair in distances.items() if pair[0] > 1.5 * pair[1] + 5e-3}
    assert not farther, f"(fast, plain) against float32: {farther}"


@pytest.mark.parametrize("name", CONFIGS)
def test_float32(name):
    kernels = select_kernels(torch.device("cuda"), torch.float32)
    exact, fast = result(name, "fp32", Kernels()), result(name, "fp32", kernels)
    for key, value in exact.items():
        assert distance(fast[key], value) <= 1e-4, key
