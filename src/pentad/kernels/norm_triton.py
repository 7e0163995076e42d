"""Triton kernels of `pentad.kernels.norm`, which says what they compute. Importing this needs Triton.

Invariant: each element is read and written once.
"""

import triton
from triton import language as tl


@triton.jit
def forward(x, weight, output, scales, stride, width, eps, BLOCK: tl.constexpr):
    """One program a row; `scales` takes the reciprocal root of the mean square."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    result = value * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * width + columns, result.to(output.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def backward(
    grad, x, weight, scales, grad_x, parts, stride, rows, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a run of ROWS rows; `parts` takes its sum for the gradient of the weight."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(0, ROWS):
        row = program * ROWS + step
        here = inside & (row < rows)
        given = tl.load(grad + row * width + columns, mask=here, other=0.0).to(tl.float32)
        value = tl.load(x + row * stride + columns, mask=here, other=0.0).to(tl.float32)
        scale = tl.load(scales + row, mask=row < rows, other=0.0)
        normal = value * scale
        total += given * normal
        weighted = given * factor
        mean = tl.sum(weighted * normal, axis=0) / width
        result = scale * (weighted - normal * mean)
        tl.store(grad_x + row * width + columns, result.to(grad_x.dtype.element_ty), mask=here)
    tl.store(parts + program * width + columns, total, mask=inside)
