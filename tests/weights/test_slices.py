"""Sums over slices add up to the checksum of the whole, however the slices are held."""

import pytest
import torch

from pentad.weights.checksum import checksum
from pentad.weights.slice_sums import SliceTable, unsigned
from pentad.weights.slices import Slice, runs_of, tiling_problem

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return request.param


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(), (1,), (70_001,), (130, 520), (3, 40, 50)])
def test_a_whole_tensor_sums_to_its_checksum(device, shape, dtype):
    tensor = torch.randn(shape).to(device=device, dtype=dtype)
    assert unsigned(SliceTable([tensor], [Slice.whole(shape)]).sums()[0]) == checksum(tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_parts_add_up(device, dtype):
    tensor = torch.randn(48, 100).to(device=device, dtype=dtype)
    fused = torch.zeros(120, 100, device=device, dtype=dtype)
    memories, parts = [], []
    for row, column in ((0, 0), (0, 60), (16, 0), (16, 60)):
        height, width = (32 if row else 16), (40 if column else 60)
        source = tensor[row : row + height, column : column + width]
        memory = fused[2 * row : 2 * row + height, column : column + width]  # neither as in the tensor, nor contiguous
        memory.copy_(source)
        memories.append(memory)
        parts.append(Slice(source.storage_offset(), tuple(source.shape), source.stride()))
    assert tiling_problem(tensor.numel(), parts) is None
    assert unsigned(SliceTable(memories, parts).sums().sum()) == checksum(tensor)
    fused[0, 0] += 1
    assert unsigned(SliceTable(memories, parts).sums().sum()) != checksum(tensor)


def test_transposed_memory_is_summed(device):
    tensor = torch.randn(7, 9).to(device=device, dtype=torch.bfloat16)
    held = tensor.t().contiguous()
    part = Slice(0, (9, 7), (1, 9))
    assert unsigned(SliceTable([held], [part]).sums()[0]) == checksum(tensor)


def test_runs_are_as_long_as_they_can_be():
    whole = Slice.whole((4, 5, 6))
    assert runs_of(whole, (30, 6, 1)).length == 120
    assert runs_of(whole, (60, 6, 1)).length == 30
    assert runs_of(whole, (60, 12, 1)).length == 6
    column = Slice(3, (4, 1), (6, 1))
    assert runs_of(column, (1, 1)).starts.tolist() == [3, 9, 15, 21]


@pytest.mark.parametrize(
    "parts, problem",
    [
        ([Slice(0, (2, 6), (6, 1)), Slice(12, (2, 6), (6, 1))], None),
        ([Slice(0, (4, 3), (6, 1)), Slice(3, (4, 3), (6, 1))], None),
        ([Slice(0, (2, 6), (6, 1))], "element 12 of 24 is not held"),
        ([Slice(6, (3, 6), (6, 1))], "element 0 of 24 is not held"),
        ([Slice(0, (4, 6), (6, 1)), Slice(6, (1, 6), (6, 1))], "element 6 of 24 is held twice"),
        ([], "no engine holds it"),
    ],
)
def test_parts_tile_a_tensor_or_say_where_not(parts, problem):
    assert tiling_problem(24, parts) == problem
