"""Root-mean-square normalisation equals its equation in float64."""

import pytest
import torch

from pentad.kernels.norm import rms_norm, rms_norm_plain


@pytest.mark.parametrize("normalise", [rms_norm, rms_norm_plain])
@pytest.mark.parametrize("shape", [(37, 1, 48), (5, 3, 16)])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_equals_the_equation(device, dtype, bound, shape, normalise):
    random = torch.Generator().manual_seed(3)
    # A slice of a wider tensor, as keys are of the fused projection.
    wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=random).to(device, dtype)
    x = (wide[..., : shape[-1]] * 3).detach().requires_grad_()
    weight = torch.randn(shape[-1], generator=random).to(device, dtype).requires_grad_()
    grad = torch.randn(shape, generator=random).to(device, dtype)
    output = normalise(x, weight, 1e-3)
    output.backward(grad)
    exact, factor = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-3).sqrt() * factor
    expected.backward(grad.double())
    for one, other in ((output, expected), (x.grad, exact.grad), (weight.grad, factor.grad)):
        assert float((one.detach().double() - other.detach()).norm() / other.detach().norm()) <= bound
