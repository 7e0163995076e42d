"""SwiGLU and the MLP around it equal their equations in float64, by whichever version."""

import pytest
import torch
from torch import Tensor

from pentad.kernels.gated_mlp import gated_mlp
from pentad.kernels.swiglu import swiglu, swiglu_plain

ROWS, WIDTH = 13, 72


def equation(x: Tensor, row_weights: Tensor | None) -> Tensor:
    """`x1 / (1 + exp(-x1)) * x2`, times the row's weight."""
    gate, up = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    output = gate / (1 + torch.exp(-gate)) * up
    return output if row_weights is None else output * row_weights[:, None]


def inputs(device: torch.device, weighted: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    random = torch.Generator().manual_seed(5)
    x = torch.randn(ROWS, 2 * WIDTH, generator=random, dtype=torch.float64) * 3
    row_weights = torch.rand(ROWS, generator=random, dtype=torch.float64) if weighted else None
    grad = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64)
    return x.to(device), None if row_weights is None else row_weights.to(device), grad.to(device)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("version", ["torch", "triton"])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_swiglu(device, dtype, bound, version, weighted):
    x, row_weights, grad = inputs(device, weighted)
    x = x.to(dtype).double().requires_grad_()
    if weighted:
        row_weights.requires_grad_()
    expected = equation(x, row_weights)
    expected.backward(grad)
    mine = x.detach().to(dtype).requires_grad_()
    weights = row_weights.detach().float().requires_grad_() if weighted else None
    got = swiglu(mine, weights, version=version)
    got.backward(grad.to(dtype))
    assert got.dtype == dtype
    pairs = [(got, expected), (mine.grad, x.grad)] + ([(weights.grad, row_weights.grad)] if weighted else [])
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, rtol=bound, atol=bound)


@pytest.mark.parametrize("version", ["torch", "triton", pytest.param("quack", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("buffered", [False, True])
def test_mlp_and_its_gradients(device, version, buffered):
    if version == "quack":
        pytest.importorskip("quack.gemm_interface")
    dtype, bound = (torch.bfloat16, 2e-2) if version == "quack" else (torch.float32, 1e-5)
    random = torch.Generator().manual_seed(7)
    shapes = {"x": (40, 1, 64), "weight1": (2 * 96, 64), "weight2": (48, 96), "grad": (40, 1, 48)}
    values = {
        name: (torch.randn(shape, generator=random) / 4).to(device, dtype).double() for name, shape in shapes.items()
    }
    grad = values.pop("grad")
    exact = {name: value.clone().requires_grad_() for name, value in values.items()}
    inner = equation(exact["x"][:, 0] @ exact["weight1"].t(), None)
    expected = (inner @ exact["weight2"].t())[:, None]
    expected.backward(grad)

    mine = {name: value.to(dtype).requires_grad_() for name, value in values.items()}
    weights = [mine["weight1"], mine["weight2"]]
    if buffered:
        for weight in weights:
            weight.main_grad = torch.ones_like(weight, dtype=torch.float32)
            weight.grad_added_to_main_grad = False
    got = gated_mlp(mine["x"], *weights, version=version)
    got.backward(grad.to(dtype))
    found = {name: value.grad for name, value in mine.items()}
    if buffered:
        assert all(weight.grad_added_to_main_grad for weight in weights)
        # What was there before is still there.
        found |= {name: mine[name].main_grad - 1 for name in ("weight1", "weight2")}
    for one, other in [(got, expected), *((found[name], exact[name].grad) for name in mine)]:
        assert float((one.detach().double() - other.detach()).norm() / other.detach().norm()) <= bound


def test_mlp_without_gradients_keeps_nothing(device):
    x = torch.randn(6, 1, 16, device=device)
    weight1, weight2 = torch.randn(48, 16, device=device), torch.randn(16, 24, device=device)
    with torch.no_grad():
        output = gated_mlp(x, weight1.requires_grad_(), weight2.requires_grad_(), version="torch")
    assert not output.requires_grad
    torch.testing.assert_close(output[:, 0], swiglu_plain(x[:, 0] @ weight1.t()) @ weight2.t(), rtol=1e-4, atol=1e-4)
