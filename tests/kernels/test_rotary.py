"""Rotation equals complex multiplication; its backward is the rotation by the opposite angle."""

import pytest
import torch

from pentad.kernels.rotary import rotate

TOKENS, HEADS = 7, 3


@pytest.mark.parametrize("version", ["plain", "triton"])
@pytest.mark.parametrize("head_dim", [16, 24])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
def test_rotation(device, version, head_dim, dtype, bound):
    random = torch.Generator().manual_seed(0)
    # A slice of a wider tensor, as queries are of the fused projection.
    wide = torch.randn(TOKENS, HEADS, 2 * head_dim, generator=random, dtype=torch.float64).to(device, dtype)
    x = wide[..., :head_dim].detach().requires_grad_()
    angles = torch.rand(TOKENS, head_dim // 2, generator=random, dtype=torch.float64).to(device) * 6
    table = torch.cat([angles, angles], dim=-1)
    cos, sin = table.cos().float(), table.sin().float()
    output = rotate(x, cos, sin, version=version)
    grad = torch.randn(TOKENS, HEADS, head_dim, generator=random, dtype=torch.float64).to(device, dtype)
    output.backward(grad)

    def turned(values: torch.Tensor, direction: float) -> torch.Tensor:
        first, second = values.double().chunk(2, dim=-1)
        factor = torch.polar(torch.ones_like(angles), direction * angles)[:, None]
        result = torch.complex(first, second) * factor
        return torch.cat([result.real, result.imag], dim=-1)

    assert output.is_contiguous() and output.dtype == dtype
    torch.testing.assert_close(output.double(), turned(x.detach(), 1.0), rtol=bound, atol=bound)
    torch.testing.assert_close(x.grad.double(), turned(grad, -1.0), rtol=bound, atol=bound)
