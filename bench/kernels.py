"""Every kernel, plain against fast: milliseconds forward and backward, peak memory, and error against float64.

    python bench/kernels.py                              # all operations, at Qwen2.5-3B shapes
    python bench/kernels.py --operations mlp --json result.json

Needs a GPU. Times are medians of `--repeats` runs between CUDA events on random data; errors are
`||result - reference|| / ||reference||` of the output and of the worst gradient, on fewer tokens.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from pentad.kernels.attention import attention_plain, packed_attention
from pentad.kernels.gated_mlp import gated_mlp
from pentad.kernels.linear import linear
from pentad.kernels.logprob import vocab_parallel_logprobs
from pentad.kernels.norm import rms_norm, rms_norm_plain
from pentad.kernels.rotary import rotate, rotate_plain
from pentad.kernels.selection import explain, select_kernels
from pentad.kernels.swiglu import swiglu

DEVICE = torch.device("cuda")
TOKENS, CHECKED_TOKENS = 16384, 1024
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 2048, 11008, 16, 2, 128, 151936

Inputs = dict[str, Tensor]
Compute = Callable[[Inputs], Tensor]


@dataclass
class Operation:
    """What is measured.

    Attributes:
        make: float32 inputs for a number of tokens; `weight*` have float32 gradient buffers, as under Megatron.
        versions: by name; the first is the plain one.
        reference: the same on float64 inputs.
    """

    make: Callable[[int], Inputs]
    versions: dict[str, Compute]
    reference: Compute
    tokens: int = TOKENS


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=DEVICE) * scale


def lengths_of(tokens: int) -> list[int]:
    """Sequences of about 838 tokens."""
    random = torch.Generator().manual_seed(0)
    lengths = []
    while sum(lengths) < tokens:
        lengths.append(min(int(torch.randint(512, 1165, (1,), generator=random)), tokens - sum(lengths)))
    return lengths


def mlp() -> Operation:
    def eager(x: Inputs) -> Tensor:
        gate, up = (x["x"] @ x["weight1"].t()).chunk(2, dim=-1)
        return (silu(gate) * up) @ x["weight2"].t()

    def by(version: Any, x: Inputs) -> Tensor:
        return gated_mlp(x["x"], x["weight1"], x["weight2"], version=version)

    return Operation(
        lambda tokens: {
            "x": normal(tokens, HIDDEN),
            "weight1": normal(2 * FFN, HIDDEN, scale=0.02),
            "weight2": normal(HIDDEN, FFN, scale=0.02),
        },
        {"plain": eager, **{name: partial(by, name) for name in ("torch", "triton", "quack")}},
        eager,
    )


def projection() -> Operation:
    def eager(x: Inputs) -> Tensor:
        return x["x"] @ x["weight"].t()

    return Operation(
        lambda tokens: {"x": normal(tokens, HIDDEN), "weight": normal(HIDDEN, HIDDEN, scale=0.02)},
        {"plain": eager, "accumulate": lambda x: linear(x["x"], x["weight"])},
        eager,
    )


def rotary() -> Operation:
    def make(tokens: int) -> Inputs:
        places = torch.cat([torch.arange(length) for length in lengths_of(tokens)]).to(DEVICE, torch.float32)
        angles = places[:, None] * 1e6 ** -(torch.arange(HEAD_DIM // 2, device=DEVICE) * 2 / HEAD_DIM)
        return {"x": normal(tokens, HEADS, HEAD_DIM), "angles": torch.cat([angles, angles], dim=-1)}

    def by(version: Any, x: Inputs) -> Tensor:
        return rotate(x["x"], x["angles"].cos(), x["angles"].sin(), version=version)

    return Operation(
        make,
        {name: partial(by, name) for name in ("plain", "triton")},
        lambda x: rotate_plain(x["x"], x["angles"].cos(), x["angles"].sin()),
    )


def norm() -> Operation:
    return Operation(
        lambda tokens: {"x": normal(tokens, HIDDEN), "factor": 1 + normal(HIDDEN, scale=0.1)},
        {
            "plain": lambda x: rms_norm_plain(x["x"], x["factor"], 1e-6),
            "triton": lambda x: rms_norm(x["x"], x["factor"], 1e-6),
        },
        lambda x: x["x"] / (x["x"].square().mean(-1, keepdim=True) + 1e-6).sqrt() * x["factor"],
    )


def attention() -> Operation:
    def make(tokens: int) -> Inputs:
        heads = {"query": HEADS, "key": KV_HEADS, "value": KV_HEADS}
        return {name: normal(tokens, count, HEAD_DIM) for name, count in heads.items()}

    def eager(x: Inputs) -> Tensor:
        return attention_plain(x["query"], x["key"], x["value"], lengths_of(len(x["query"])), HEAD_DIM**-0.5)

    bounds: dict[int, tuple[Tensor, int]] = {}

    def by(version: Any, x: Inputs) -> Tensor:
        tokens = len(x["query"])
        if tokens not in bounds:
            lengths = lengths_of(tokens)
            bounds[tokens] = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32), max(lengths)
        ends, longest = bounds[tokens]
        return packed_attention(
            x["query"], x["key"], x["value"], cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=longest,
            max_seqlen_k=longest, scale=HEAD_DIM**-0.5, version=version,
        )  # fmt: skip

    return Operation(make, {"plain": eager, **{name: partial(by, name) for name in ("varlen", "flash4")}}, eager)


def logprob(tokens: int, hidden: int, vocabulary: int) -> Operation:
    def make(tokens: int) -> Inputs:
        targets = torch.randint(vocabulary, (tokens,), device=DEVICE)
        return {"x": normal(tokens, hidden), "weight": normal(vocabulary, hidden, scale=0.02), "targets": targets}

    def by(version: Any, x: Inputs) -> Tensor:
        return vocab_parallel_logprobs(
            x["x"], x["weight"], x["targets"], temperature=1.0, vocab_size=vocabulary, group=None, version=version
        )[0]

    def exact(x: Inputs) -> Tensor:
        return torch.log_softmax(x["x"] @ x["weight"].t(), -1).gather(1, x["targets"][:, None])[:, 0]

    return Operation(make, {name: partial(by, name) for name in ("plain", "triton")}, exact, tokens)


def experts() -> Operation:
    """SwiGLU of experts: eight of 128, 768 wide, each token's part weighted."""

    def eager(x: Inputs) -> Tensor:
        gate, up = x["x"].chunk(2, dim=-1)
        return (silu(gate) * up * x["shares"][:, None]).to(x["x"].dtype)

    return Operation(
        lambda tokens: {"x": normal(tokens, 2 * 768), "shares": torch.rand(tokens, device=DEVICE)},
        {"plain": eager, "triton": lambda x: swiglu(x["x"], x["shares"], version="triton")},
        eager,
        8 * TOKENS,
    )


OPERATIONS: dict[str, Callable[[], Operation]] = {
    "mlp": mlp,
    "projection": projection,
    "rotary": rotary,
    "norm": norm,
    "attention": attention,
    "logprob": partial(logprob, 12288, HIDDEN, VOCABULARY),
    "logprob-131072": partial(logprob, 32768, 4096, 131072),
    "experts": experts,
}
# Kept as they are: no gradient, or float32 in the models, too.
_FIXED = ("angles", "targets", "shares")


def prepare(inputs: Inputs) -> Inputs:
    """bfloat16 leaves; weights with the buffer and the mark that Megatron's wrapper gives them."""
    made = {}
    for name, value in inputs.items():
        made[name] = value if name in _FIXED else value.bfloat16()
        if made[name].is_floating_point():
            made[name] = made[name].requires_grad_(name != "angles")
        if name.startswith("weight"):
            made[name].main_grad = torch.zeros_like(made[name], dtype=torch.float32)
            made[name].grad_added_to_main_grad = False
    return made


def backward(output: Tensor, grad: Tensor, inputs: Inputs) -> None:
    """Backward, and what Megatron's hook does after it."""
    output.backward(grad)
    for value in inputs.values():
        if hasattr(value, "main_grad"):
            if not value.grad_added_to_main_grad:
                value.main_grad.add_(value.grad)
            value.grad_added_to_main_grad = False
        if value.requires_grad and hasattr(value, "main_grad"):
            value.grad = None


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for number in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


@dataclass
class Row:
    """One version of one operation."""

    operation: str
    version: str
    forward_ms: float
    backward_ms: float
    peak_gib: float
    output_error: float
    gradient_error: float


def measure(name: str, operation: Operation, version: str, repeats: int) -> Row:
    compute = operation.versions[version]
    torch.manual_seed(0)
    output_error, gradient_error = errors(operation, compute)
    torch.manual_seed(1)
    inputs = prepare(operation.make(operation.tokens))
    output = compute(inputs)
    grad = torch.randn_like(output)
    backward(output, grad, inputs)
    del output
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    backward(compute(inputs), grad, inputs)
    peak = torch.cuda.max_memory_allocated() - held
    forward = milliseconds(lambda: compute(inputs), repeats)

    def both() -> None:
        for value in inputs.values():
            value.grad = None
        backward(compute(inputs), grad, inputs)

    return Row(
        name, version, forward, milliseconds(both, repeats) - forward, peak / 2**30, output_error, gradient_error
    )


def errors(operation: Operation, compute: Compute) -> tuple[float, float]:
    inputs = prepare(operation.make(CHECKED_TOKENS))
    exact = {
        name: (value.detach().double() if value.is_floating_point() else value).requires_grad_(value.requires_grad)
        for name, value in inputs.items()
    }
    expected = operation.reference(exact)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    output = compute(inputs)
    backward(output, grad.to(output.dtype), inputs)
    worst = 0.0
    for name, value in inputs.items():
        if value.requires_grad:
            found = value.main_grad if hasattr(value, "main_grad") else value.grad
            worst = max(worst, distance(found, exact[name].grad))
    return distance(output, expected), worst


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.detach().double() - other.detach()).norm() / other.detach().norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", nargs="*", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "this benchmark needs a GPU\n")
    for reason in explain(select_kernels(DEVICE, torch.bfloat16), DEVICE):
        print(f"{reason.operation:10} {reason.version:10} {reason.missing and 'needs ' + reason.missing}")
    print(
        f"{'operation':16} {'version':10} {'forward':>9} {'backward':>9} {'peak GiB':>9} {'output':>9} {'gradient':>9}"
    )
    rows = []
    for name in options.operations:
        operation = OPERATIONS[name]()
        for version in operation.versions:
            try:
                row = measure(name, operation, version, options.repeats)
            except Exception as error:
                print(f"{name:16} {version:10} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            finally:
                torch.cuda.empty_cache()
            rows.append(asdict(row))
            print(
                f"{name:16} {version:10} {row.forward_ms:9.3f} {row.backward_ms:9.3f} {row.peak_gib:9.2f} "
                f"{row.output_error:9.1e} {row.gradient_error:9.1e}",
                flush=True,
            )
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
