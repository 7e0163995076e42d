"""`pentad.kernels.logprob` with one read of each chunk of logits, forward and backward.

Invariant: as there. Ranks exchange once for all tokens, not once a chunk. The weight's gradient is summed in float32,
in its own buffer where there is one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

from pentad.kernels.linear import add_product, has_buffer, placeholder
from pentad.kernels.logits import Statistics, logits_gradient, row_statistics
from pentad.kernels.matmul import mm_float32

# Elements of one chunk of logits: 1.25 GiB in float32. Every chunk reads and writes the weight's gradient.
_CHUNK_ELEMENTS = 5 << 26


class FusedLogprob(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] over a vocabulary split by rows of W."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        vocab_start: int,
        vocab_size: int,
        group: ProcessGroup | None,
        differentiates_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        columns = {
            "vocab_start": vocab_start,
            "real": max(0, min(weight.shape[0], vocab_size - vocab_start)),
            "temperature": temperature,
        }
        chunks = _chunks(targets.shape[0], weight.shape[0])
        found = torch.empty(4, targets.shape[0], dtype=torch.float32, device=hidden.device)
        for chunk in chunks:
            logits = mm_float32(hidden[chunk], weight.t())
            found[:, chunk] = torch.stack(row_statistics(logits, targets[chunk], **columns))
            del logits
        peak, total, weighted, picked = _over_ranks(Statistics(*found), temperature, group)
        log_total = total.log()
        entropies = log_total - weighted / total
        kept = entropies.clone() if differentiates_entropy else None
        ctx.save_for_backward(hidden, weight, targets, peak, log_total, kept)
        ctx.arguments = (columns, chunks)
        if not differentiates_entropy:
            ctx.mark_non_differentiable(entropies)
        return (picked - peak) / temperature - log_total, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, peak, log_total, entropies = ctx.saved_tensors
        columns, chunks = ctx.arguments
        scales = grads[0] / columns["temperature"]
        grad_hidden = torch.empty_like(hidden)
        trained = ctx.needs_input_grad[1]
        direct = has_buffer(weight) and weight.main_grad.dtype == torch.float32
        total = None
        if trained:
            total = weight.main_grad if direct else torch.zeros_like(weight, dtype=torch.float32)
        for chunk in chunks:
            logits = mm_float32(hidden[chunk], weight.t())
            rows = (x[chunk] for x in (targets, peak, log_total, scales))
            entropy = None
            if entropies is not None:
                entropy = (entropies[chunk], grads[1][chunk] / columns["temperature"])
            grad = logits_gradient(logits, *rows, hidden.dtype, entropy=entropy, **columns)
            del logits
            torch.mm(grad, weight, out=grad_hidden[chunk])
            if total is not None:
                add_product(total, grad.t(), hidden[chunk])
            del grad
        grad_weight = None
        if total is not None:
            grad_weight = placeholder(weight) if direct else total.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _chunks(tokens: int, columns: int) -> list[slice]:
    """Runs of equal length; where they are long, of so many rows that the products' tiles fill all of a GPU."""
    most = max(1, _CHUNK_ELEMENTS // columns)
    rows = next((most // step * step for step in (2048, 128) if most >= step), most)
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def _over_ranks(mine: Statistics, temperature: float, group: ProcessGroup | None) -> Statistics:
    """Statistics of the whole vocabulary, the same on every rank."""
    if group is None or group.size() == 1:
        return mine
    peak = mine.peak.clone()
    all_reduce(peak, op=ReduceOp.MAX, group=group)
    # A rank that holds padding alone has the peak -inf and the sums 0.
    shift = ((mine.peak - peak) / temperature).clamp(min=torch.finfo(torch.float32).min)
    decay = shift.exp()
    sums = torch.stack([decay * mine.total, decay * (mine.weighted + mine.total * shift), mine.picked])
    all_reduce(sums, group=group)
    return Statistics(peak, *sums)
