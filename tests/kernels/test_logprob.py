"""Log-probs from hidden states equal a plain log-softmax, however the vocabulary is cut."""

import pytest
import torch
from ranks import Rank, run_on
from torch import Tensor

from pentad.kernels import fused_logprob, logprob
from pentad.kernels.logprob import vocab_parallel_logprobs
from pentad.layout import Layout

HIDDEN, TOKENS, VOCAB = 24, 13, 37


def inputs(tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, whole output weight, targets (first and last token of the vocabulary among them), and dL/dlogp."""
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, HIDDEN, generator=random)
    weight = torch.randn(VOCAB, HIDDEN, generator=random)
    targets = torch.randint(0, VOCAB, (tokens,), generator=random)
    targets[: min(2, tokens)] = torch.tensor([0, VOCAB - 1])[:tokens]
    return hidden, weight, targets, torch.randn(tokens, generator=random)


def plain(temperature: float) -> list[Tensor]:
    """Log-probs, entropies, gradient of the hidden states, gradient of the weight."""
    hidden, weight, targets, grad = inputs()
    hidden.requires_grad_()
    weight.requires_grad_()
    scores = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    logprobs = scores.gather(1, targets[:, None])[:, 0]
    logprobs.backward(grad)
    return [logprobs.detach(), -(scores.exp() * scores).sum(-1).detach(), hidden.grad, weight.grad]


def split(rank: Rank, temperature: float, chunk: int, version: str) -> list[Tensor]:
    logprob._CHUNK_ELEMENTS = fused_logprob._CHUNK_ELEMENTS = chunk
    group = rank.groups.tp
    rows = -(-VOCAB // group.size())
    hidden, whole, targets, grad = inputs()
    # Padding rows hold what a careless product would notice.
    padded = torch.cat([whole, torch.full((rows * group.size() - VOCAB, HIDDEN), 1e3)])
    weight = padded.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden.requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(
        hidden, weight, targets, temperature=temperature, vocab_size=VOCAB, group=group, version=version
    )
    logprobs.backward(grad)
    torch.distributed.all_reduce(hidden.grad, group=group)
    parts = [torch.empty_like(weight.grad) for _ in range(group.size())]
    torch.distributed.all_gather(parts, weight.grad, group=group)
    gathered = torch.cat(parts)
    assert not gathered[VOCAB:].any(), "padding rows have a gradient"
    return [logprobs.detach(), entropies, hidden.grad, gathered[:VOCAB]]


@pytest.mark.parametrize("version", ["plain", "triton"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("temperature, chunk", [(1.0, 1 << 26), (0.6, 5 * 20)])
def test_equals_log_softmax(ranks, temperature, chunk, version):
    if version == "triton" and torch.cuda.is_available():
        pytest.skip("ranks of tests are CPU ranks, and Triton's interpreter is off")
    expected = plain(temperature)
    for got in run_on(Layout(tensor=ranks), split, temperature, chunk, version):
        for what, one, other in zip(("log-prob", "entropy", "d hidden", "d weight"), got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=lambda text, what=what: f"{what}: {text}")


def split_entropy(rank: Rank, temperature: float, version: str) -> list[Tensor]:
    """Gradients of a sum of log-probs and entropies, each with weights of its own."""
    logprob._CHUNK_ELEMENTS = fused_logprob._CHUNK_ELEMENTS = 5 * 20
    group = rank.groups.tp
    rows = -(-VOCAB // group.size())
    hidden, whole, targets, grad = inputs()
    padded = torch.cat([whole, torch.full((rows * group.size() - VOCAB, HIDDEN), 1e3)])
    weight = padded.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden.requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(
        hidden,
        weight,
        targets,
        temperature=temperature,
        vocab_size=VOCAB,
        group=group,
        differentiates_entropy=True,
        version=version,
    )
    (logprobs * grad + entropies * grad.flip(0)).sum().backward()
    torch.distributed.all_reduce(hidden.grad, group=group)
    parts = [torch.empty_like(weight.grad) for _ in range(group.size())]
    torch.distributed.all_gather(parts, weight.grad, group=group)
    return [hidden.grad, torch.cat(parts)[:VOCAB]]


@pytest.mark.parametrize("version", ["plain", "triton"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_entropies_are_differentiable_when_asked_for(ranks, version):
    if version == "triton" and torch.cuda.is_available():
        pytest.skip("ranks of tests are CPU ranks, and Triton's interpreter is off")
    temperature = 0.7
    hidden, weight, targets, grad = (part.double() if part.is_floating_point() else part for part in inputs())
    hidden.requires_grad_()
    weight.requires_grad_()
    scores = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    logprobs, entropies = scores.gather(1, targets[:, None])[:, 0], -(scores.exp() * scores).sum(-1)
    (logprobs * grad + entropies * grad.flip(0)).sum().backward()
    for got in run_on(Layout(tensor=ranks), split_entropy, temperature, version):
        torch.testing.assert_close(got[0].double(), hidden.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got[1].double(), weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("version", ["plain", "triton"])
def test_no_tokens(version, device):
    hidden, weight, targets, grad = (x.to(device) for x in inputs(0))
    hidden.requires_grad_()
    weight.requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(
        hidden, weight, targets, temperature=1.0, vocab_size=VOCAB, group=None, version=version
    )
    logprobs.backward(grad)
    assert logprobs.shape == entropies.shape == (0,)
    assert not weight.grad.any()


@pytest.mark.parametrize("version", ["plain", "triton"])
def test_large_logits_do_not_overflow(version, device):
    hidden, weight, targets, _ = (x.to(device) for x in inputs())
    logprobs, entropies = vocab_parallel_logprobs(
        hidden * 1e3, weight, targets, temperature=0.1, vocab_size=VOCAB, group=None, version=version
    )
    expected = torch.log_softmax(hidden * 1e3 @ weight.t() / 0.1, dim=-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)
    assert entropies.isfinite().all()


@pytest.mark.parametrize("version", ["plain", "triton"])
def test_bf16_products_are_not_rounded(version, device):
    hidden, weight, targets, _ = (x.to(device) for x in inputs())
    half = [tensor.bfloat16() for tensor in (hidden, weight)]
    logprobs, _ = vocab_parallel_logprobs(
        *half, targets, temperature=1.0, vocab_size=VOCAB, group=None, version=version
    )
    expected = torch.log_softmax(half[0].float() @ half[1].float().t(), dim=-1).gather(1, targets[:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", ["plain", "triton"])
def test_entropy_of_a_large_vocabulary_is_exact(version, device):
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, HIDDEN, generator=random), torch.randn(50_000, HIDDEN, generator=random)
    hidden, weight, targets = hidden.to(device), weight.to(device), torch.arange(9, device=device)
    # A hidden element that adds 200 to every logit changes no distribution.
    hidden[:, 0], weight[:, 0] = 200.0, 1.0
    logprobs, entropies = vocab_parallel_logprobs(
        hidden, weight, targets, temperature=1.0, vocab_size=50_000, group=None, version=version
    )
    scores = torch.log_softmax((hidden @ weight.t()).double(), dim=-1)
    torch.testing.assert_close(entropies.double(), -(scores.exp() * scores).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logprobs.double(), scores.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_goes_into_its_buffer(dtype, device):
    hidden, weight, targets, grad = (x.to(device) for x in inputs())
    plainly, buffered = (weight.to(dtype, copy=True).requires_grad_() for _ in range(2))
    buffered.main_grad, buffered.grad_added_to_main_grad = torch.ones(VOCAB, HIDDEN, device=device), False
    for version, leaf in (("plain", plainly), ("triton", buffered)):
        logprobs, _ = vocab_parallel_logprobs(
            hidden.to(dtype), leaf, targets, temperature=0.7, vocab_size=VOCAB, group=None, version=version
        )
        logprobs.backward(grad)
    assert buffered.grad_added_to_main_grad
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(buffered.main_grad - 1, plainly.grad.float(), rtol=bound, atol=bound)
