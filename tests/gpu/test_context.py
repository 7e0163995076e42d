"""Where keys are gathered over context-parallel ranks, kernels give runs of queries what the whole pack gives them."""

import pytest
import torch
from torch import Tensor

from pentad.kernels.attention import Version, attention_plain, packed_attention
from pentad.trainers.megatron.runs import KeyBounds, runs_of

# Sequences inside of a run and over several; 7 heads of queries for each of keys and values, as in Qwen2.5-7B.
LENGTHS = [5, 1021, 1, 130, 64, 1800, 3, 1048]
HEADS, KV_HEADS = 14, 2


def in_runs(query: Tensor, key: Tensor, value: Tensor, ranks: int, version: Version) -> Tensor:
    """Attention by all ranks, one after the other, in the order of the pack."""
    tokens, scale = len(query), query.shape[-1] ** -0.5
    found: dict[int, Tensor] = {}
    for rank in range(ranks):
        for run in runs_of(tokens, rank, ranks, "all_gather"):
            bounds = KeyBounds.of(run, LENGTHS, query.device)
            seen = slice(bounds.keys.start, bounds.keys.stop)
            found[run.start] = packed_attention(
                query[run.start : run.stop],
                key[seen],
                value[seen],
                cu_seqlens_q=bounds.cu_seqlens_q,
                cu_seqlens_k=bounds.cu_seqlens_k,
                max_seqlen_q=max(bounds.query_lengths),
                max_seqlen_k=max(bounds.key_lengths),
                scale=scale,
                version=version,
            )
    return torch.cat([found[start] for start in sorted(found)])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("version", ["varlen", "flash4"])
def test_runs_give_what_the_whole_pack_gives(version: Version, ranks: int, head_dim: int) -> None:
    if version == "flash4":
        pytest.importorskip("flash_attn.cute.interface")
    tokens = sum(LENGTHS) // (2 * ranks) * 2 * ranks
    assert tokens == sum(LENGTHS)
    random = torch.Generator().manual_seed(6)
    shapes = [(tokens, heads, head_dim) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    *operands, grad = (torch.randn(shape, generator=random).to("cuda", torch.bfloat16) for shape in shapes)
    mine = [x.clone().requires_grad_() for x in operands]
    output = in_runs(*mine, ranks, version)
    output.backward(grad)
    exact = [x.float().requires_grad_() for x in operands]
    expected = attention_plain(*exact, LENGTHS, head_dim**-0.5)
    expected.backward(grad.float())
    for one, other in [(output, expected), *((a.grad, b.grad) for a, b in zip(mine, exact, strict=True))]:
        assert float((one.detach().float() - other.detach()).norm() / other.detach().norm()) <= 1e-2
