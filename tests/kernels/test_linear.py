"""Linear layers add their weight gradient to its buffer, and equal autograd's on several ranks."""

import pytest
import torch
from ranks import Rank, run_on
from torch import Tensor

from pentad.kernels.gated_mlp import gated_mlp, gated_mlp_plain
from pentad.kernels.linear import add_product, linear, linear_plain
from pentad.layout import Layout

TOKENS, WIDTH, OUT = 12, 8, 16


def inputs() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(2)
    shapes = {"x": (TOKENS, 1, WIDTH), "weight": (OUT, WIDTH), "bias": (OUT,), "second": (WIDTH, OUT // 2)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
def test_add_product(device, into):
    random = torch.Generator().manual_seed(1)
    a, b = (torch.randn(32, 48, generator=random).bfloat16().to(device) for _ in range(2))
    total = torch.full((48, 48), 0.5, dtype=into, device=device)
    add_product(total, a.t(), b)
    expected = 0.5 + a.double().t() @ b.double()
    # In float32 nothing is rounded to bfloat16 on the way.
    bound = 1e-5 if into == torch.float32 else 2e-2
    torch.testing.assert_close(total.double(), expected, rtol=bound, atol=bound * 10)


def test_two_uses_of_a_weight():
    """The head adds its gradient to the buffer; autograd still brings the embedding's, and nothing with it."""
    values = inputs()
    weight = values["weight"].requires_grad_()
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros(OUT, WIDTH), False
    weight.zero_out_wgrad = True
    linear(weight[:3, None], weight).sum().backward()
    copy = values["weight"].detach().clone().requires_grad_()
    linear_plain(copy[:3, None], copy).sum().backward()
    torch.testing.assert_close(weight.main_grad + weight.grad, copy.grad)


def on_ranks(rank: Rank, scatter: bool) -> dict[str, Tensor]:
    """Gradients of a column-parallel layer and of an MLP, put together again."""
    group, values = rank.groups.tp, inputs()
    ranks, place = group.size(), group.rank()

    def mine(tensor: Tensor, dim: int) -> Tensor:
        return tensor.chunk(ranks, dim)[place].clone().requires_grad_()

    def whole(tensor: Tensor, dim: int) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(ranks)]
        torch.distributed.all_gather(parts, tensor.contiguous(), group=group)
        return torch.cat(parts, dim)

    results = {}
    x = mine(values["x"], 0) if scatter else values["x"].requires_grad_()
    weight, bias = mine(values["weight"], 0), mine(values["bias"], 0)
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight), False
    output = linear(x, weight, bias, group=group, scatter=scatter)
    output.square().sum().backward()
    results |= {"x": whole(x.grad, 0) if scatter else x.grad, "weight": whole(weight.main_grad, 0)}
    results["bias"] = whole(bias.grad, 0)

    x = x.detach().clone().requires_grad_()
    gate, up = values["weight"].chunk(2)
    first = torch.cat([mine(gate, 0), mine(up, 0)]).detach().requires_grad_()
    second = mine(values["second"], 1)
    output = gated_mlp(x, first, second, version="torch", group=group, scatter=scatter)
    (output * torch.ones_like(output)).sum().backward()
    results["mlp x"] = whole(x.grad, 0) if scatter else x.grad
    gates, ups = first.grad.chunk(2)
    results["mlp first"] = torch.cat([whole(gates, 0), whole(ups, 0)])
    results["mlp second"] = whole(second.grad, 1)
    return results


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_agree_with_autograd(ranks, scatter):
    values = {name: value.requires_grad_() for name, value in inputs().items()}
    linear_plain(values["x"], values["weight"], values["bias"]).square().sum().backward()
    expected = {name: values[name].grad.clone() for name in ("x", "weight", "bias")}
    for value in values.values():
        value.grad = None
    gated_mlp_plain(values["x"], values["weight"], values["second"]).sum().backward()
    for name, of in (("mlp x", "x"), ("mlp first", "weight"), ("mlp second", "second")):
        expected[name] = values[of].grad
    for results in run_on(Layout(tensor=ranks), on_ranks, scatter):
        for name, value in expected.items():
            torch.testing.assert_close(
                results[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
