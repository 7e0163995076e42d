"""Attention over packs equals softmax(q k^T) v of each sequence, in float64."""

import pytest
import torch
from torch import Tensor

from pentad.kernels.attention import attention_plain, packed_attention

LENGTHS = [5, 1, 130, 64, 33]


def equation(query: Tensor, key: Tensor, value: Tensor, queries: list[int], keys: list[int], scale: float) -> Tensor:
    outputs = []
    share = query.shape[1] // key.shape[1]
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        places = torch.arange(len(k), device=q.device)
        # The last query stands beside the last key.
        hidden = places[None] > (torch.arange(len(q), device=q.device) + len(k) - len(q))[:, None]
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


def inputs(device: torch.device, dtype: torch.dtype, queries: int, keys: int, head_dim: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(4)
    shapes = [(queries, 4, head_dim), (keys, 2, head_dim), (keys, 2, head_dim), (queries, 4, head_dim)]
    return [torch.randn(shape, generator=random).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize("part", ["all queries", "later queries"])
def test_plain(device, part):
    queries = LENGTHS if part == "all queries" else [max(1, length // 2) for length in LENGTHS]
    *operands, grad = inputs(device, torch.float32, sum(queries), sum(LENGTHS), 16)
    mine = [x.clone().requires_grad_() for x in operands]
    attention_plain(*mine, queries, 0.3, LENGTHS).backward(grad)
    exact = [x.double().requires_grad_() for x in operands]
    equation(*exact, queries, LENGTHS, 0.3).backward(grad.double())
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["all queries", "later queries"])
# At 16, torch's kernel takes the place of FlashAttention 4.
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("version", ["varlen", "flash4"])
def test_packs(device, version, head_dim, part):
    if version == "flash4":
        pytest.importorskip("flash_attn.cute.interface")
    keys = LENGTHS
    queries = keys if part == "all queries" else [max(1, length // 2) for length in keys]
    *operands, grad = inputs(device, torch.bfloat16, sum(queries), sum(keys), head_dim)
    mine = [x.clone().requires_grad_() for x in operands]
    bounds = [torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (queries, keys)]
    output = packed_attention(
        *mine, cu_seqlens_q=bounds[0], cu_seqlens_k=bounds[1], max_seqlen_q=max(queries), max_seqlen_k=max(keys),
        scale=head_dim**-0.5, version=version,
    )  # fmt: skip
    output.backward(grad)
    exact = [x.double().requires_grad_() for x in operands]
    expected = equation(*exact, queries, keys, head_dim**-0.5)
    expected.backward(grad.double())
    for one, other in [(output, expected), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True))]:
        assert float((one.detach().double() - other.detach()).norm() / other.detach().norm()) <= 1e-2
