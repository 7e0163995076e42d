"""A checksum sees what happens to weights on their way, and slices add up to it."""

import pytest
import torch
from torch import Tensor

from pentad.weights.checksum import checksum, index_weights

GAMMA = 0x9E3779B97F4A7C15


def splitmix64(state: int) -> int:
    """The published generator in whole numbers: https://prng.di.unimi.it/splitmix64.c."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def weight(index: int) -> int:
    low, high = splitmix64((index % 2**16 + 1) * GAMMA), splitmix64(((index >> 16) + 0x5851F42D4C957F2D + 1) * GAMMA)
    return (low | 1) * (high | 1) % 2**64


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 140_000])
def test_is_the_documented_sum(size):
    numbers = torch.randint(-(2**31), 2**31, (size,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    assert checksum(numbers) == sum(value * weight(i) for i, value in enumerate(numbers.tolist())) % 2**64


def test_weights_are_odd_and_differ():
    far = torch.tensor([2**40 + 3, 2**47])
    assert [int(found) % 2**64 for found in index_weights(far)] == [weight(int(index)) for index in far]
    weights = index_weights(torch.arange(1 << 20))
    assert bool((weights & 1).all())
    assert len(weights.unique()) == len(weights)


def spoiled(bits: Tensor) -> dict[str, Tensor]:
    """Integers `[200_000]` after what a sum with weights 2 i + 1, or none, would not see, and other faults."""
    second_difference, one = bits.clone(), bits.clone()
    second_difference[10:13] += torch.tensor([1, -2, 1], dtype=bits.dtype)
    one[150_000] ^= 1
    spans_apart, square, signs = bits.clone(), bits.clone(), bits.clone()
    spans_apart[[7, 7 + 65_536]] = bits[[7 + 65_536, 7]]
    square[[0, 1, 65_536, 65_537]] += torch.tensor([1, -1, -1, 1], dtype=bits.dtype)
    signs[[3, 4]] ^= torch.iinfo(bits.dtype).min
    swapped = bits.clone()
    swapped[[3, 5]] = bits[[5, 3]]
    rows = bits.view(200, 1000)
    return {
        "+1 -2 +1 at neighbours": second_difference,
        "one bit": one,
        "neighbours swapped": swapped,
        "elements a span apart swapped": spans_apart,
        "+1 -1 -1 +1 over two spans": square,
        "two signs": signs,
        "shifted": bits.roll(1),
        "shifted by a span": bits.roll(65_536),
        "reversed": bits.flip(0),
        "rows swapped": rows[[1, 0, *range(2, 200)]].flatten(),
        "transposed": rows.t().flatten(),
        "columns rolled": rows.roll(100, 1).flatten(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sees(dtype):
    tensor = torch.randn(200_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    bits = tensor.view({4: torch.int32, 2: torch.int16}[tensor.element_size()])
    sums = {"unchanged": checksum(tensor)} | {fault: checksum(made) for fault, made in spoiled(bits).items()}
    assert checksum(bits) == sums["unchanged"]
    assert len(set(sums.values())) == len(sums)


def test_layout_of_memory_does_not_matter():
    tensor = torch.randn(64, 32)
    assert checksum(tensor.clone()) == checksum(tensor) == checksum(tensor.T.contiguous().T)


def test_slices_add_up():
    numbers = torch.randn(300, 500).view(torch.int32)
    index = torch.arange(numbers.numel()).view_as(numbers)
    slices = [(slice(0, 300), slice(0, 123)), (slice(0, 77), slice(123, 500)), (slice(77, 300), slice(123, 500))]
    total = sum(int((numbers[part].long() * index_weights(index[part])).sum()) for part in slices)
    assert total % 2**64 == checksum(numbers)
