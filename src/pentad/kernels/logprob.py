"""Log-probabilities straight from hidden states, without the `[tokens, vocabulary]` matrix.

Invariant: the vocabulary may be split over tensor-parallel ranks; every rank gets the same result. Memory is one
chunk of logits, forward and backward, whatever the number of tokens. Logits and reductions are float32.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, all_reduce

from pentad.kernels.fused_logprob import FusedLogprob
from pentad.kernels.matmul import mm_float32

Version = Literal["plain", "triton"]

# Elements of one chunk of logits: 64 M float32, a quarter of a gigabyte.
_CHUNK_ELEMENTS = 1 << 26
# exp of this is 0 in float32.
_SMALLEST_LOG = -1e4


class _VocabParallelLogprob(torch.autograd.Function):
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
        rows = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        logprobs = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        entropies, normalizers = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, targets.shape[0], rows):
            chunk = slice(start, start + rows)
            logits = _logits(hidden[chunk], weight, temperature, vocab_start, vocab_size)
            peak = logits.max(dim=-1).values
            _reduce(peak, ReduceOp.MAX, group)
            # Relative to the peak, no small number is left as the difference of two large ones.
            logits -= peak[:, None]
            local, mine = _local_targets(targets[chunk], vocab_start, weight.shape[0])
            picked = logits.gather(-1, local[:, None]).squeeze(-1).where(mine, torch.zeros_like(peak))
            weights = logits.exp()
            total = weights.sum(dim=-1)
            # The padding's logits are -inf and its weights 0; their product must be 0.
            weighted = logits.clamp_(min=torch.finfo(torch.float32).min).mul_(weights).sum(dim=-1)
            sums = torch.stack([total, picked, weighted])
            _reduce(sums, ReduceOp.SUM, group)
            log_total = sums[0].log()
            logprobs[chunk] = sums[1] - log_total
            entropies[chunk] = log_total - sums[2] / sums[0]
            normalizers[chunk] = peak + log_total
        ctx.save_for_backward(hidden, weight, targets, normalizers, entropies if differentiates_entropy else None)
        ctx.arguments = (temperature, vocab_start, vocab_size, rows)
        if not differentiates_entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalizers, entropies = ctx.saved_tensors
        temperature, vocab_start, vocab_size, rows = ctx.arguments
        grad = grads[0]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, targets.shape[0], rows):
            chunk = slice(start, start + rows)
            logits = _logits(hidden[chunk], weight, temperature, vocab_start, vocab_size)
            log_probabilities = logits.sub_(normalizers[chunk, None])
            local, mine = _local_targets(targets[chunk], vocab_start, weight.shape[0])
            scale = grad[chunk] / temperature
            factor = scale[:, None]
            if entropies is not None:
                # The gradient of the entropy H is -p (log p + H). Where p is 0, log p is bounded, so that it stays 0.
                surprise = log_probabilities.clamp(min=_SMALLEST_LOG).add_(entropies[chunk, None])
                factor = surprise.mul_((grads[1][chunk] / temperature)[:, None]).add_(factor)
            grad_logits = log_probabilities.exp_().mul_(-factor)
            grad_logits.scatter_add_(-1, local[:, None], (scale * mine)[:, None])
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[chunk] = grad_logits @ weight
            grad_weight += mm_float32(grad_logits.t(), hidden[chunk])
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float, vocab_start: int, vocab_size: int) -> Tensor:
    logits = mm_float32(hidden, weight.t())
    if temperature != 1.0:
        logits /= temperature
    real = vocab_size - vocab_start
    if real < weight.shape[0]:
        logits[:, max(real, 0) :] = float("-inf")
    return logits


def _local_targets(targets: Tensor, vocab_start: int, rows: int) -> tuple[Tensor, Tensor]:
    local = targets - vocab_start
    mine = (local >= 0) & (local < rows)
    return local.where(mine, torch.zeros_like(local)), mine


def _reduce(x: Tensor, op: Any, group: ProcessGroup | None) -> None:
    if group is not None and group.size() > 1:
        all_reduce(x, op=op, group=group)


def vocab_parallel_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    vocab_size: int,
    group: ProcessGroup | None,
    differentiates_entropy: bool = False,
    version: Version = "plain",
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution.

    Args:
        hidden: `[n, hidden_size]`, after the final norm, the same on every rank of `group`. Its gradient is this
            rank's part, to be summed over `group`.
        weight: `[padded vocabulary / ranks, hidden_size]`, this rank's rows of the output layer.
        targets: int64 `[n]`, token ids.
        temperature: divides the logits.
        vocab_size: the real vocabulary; rows behind it are padding and have probability 0.
        group: the tensor-parallel group.
        version: `triton` is `pentad.kernels.fused_logprob`.
        differentiates_entropy: the entropies carry a gradient, too.

    Returns:
        logprobs float32 `[n]`, differentiable; entropies float32 `[n]` in nats.
    """
    rank = group.rank() if group is not None else 0
    start = rank * weight.shape[0]
    function = FusedLogprob if version == "triton" else _VocabParallelLogprob
    return function.apply(hidden, weight, targets, temperature, start, vocab_size, group, differentiates_entropy)
