"""What is packed comes out bit for bit."""

import pickle

import pytest
import torch
from torch import Tensor

from pentad.weights.checksum import checksum
from pentad.weights.transport.bucket import Bucket, pack


def tensors() -> list[tuple[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    shapes = {
        "a": (3, 5),
        "b": (7,),
        "scalar": (),
        "large": (40, 11),
        "c": (2, 2, 2),
        "transposed": (6, 9),
        "last": (1,),
    }
    made = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    made["transposed"] = made["transposed"].t()
    made["b"][:3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    return list(made.items())


def unpack(buckets: list[Bucket]) -> list[tuple[str, Tensor]]:
    return [(name, tensor.clone()) for bucket in buckets for name, tensor in bucket.tensors()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket_bytes", [1, 100, 10_000])
@pytest.mark.parametrize("shipped", [False, True])
def test_round_trip_is_exact(dtype, bucket_bytes, shipped):
    buckets = list(pack(iter(tensors()), dtype, bucket_bytes))
    if shipped:
        buckets = pickle.loads(pickle.dumps(buckets))
        for bucket in buckets:
            bucket.data.flags.writeable = False  # as Ray's object store has it
    got = unpack(buckets)
    assert [name for name, _ in got] == [name for name, _ in tensors()]
    for (name, sent), (_, arrived) in zip(tensors(), got, strict=True):
        assert arrived.dtype == dtype
        assert arrived.shape == sent.shape
        # Bits, so that -0 and NaN count.
        assert checksum(arrived) == checksum(sent.to(dtype)), name
    entries = [entry for bucket in buckets for entry in bucket.entries]
    assert [entry.checksum for entry in entries] == [checksum(tensor) for _, tensor in got]


def test_a_bucket_is_closed_before_it_passes_its_size():
    sizes = [(len(bucket.entries), bucket.data.nbytes) for bucket in pack(iter(tensors()), torch.float32, 400)]
    assert all(size <= 400 for count, size in sizes if count > 1)
    assert [size for count, size in sizes if size > 400] == [40 * 11 * 4], "the large tensor travels alone"
    assert len(sizes) == 3


def test_nothing_makes_no_bucket():
    assert list(pack(iter(()), torch.float32, 100)) == []
