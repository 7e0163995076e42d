"""Triton kernels of `pentad.kernels.swiglu`, which says what they compute. Importing this needs Triton.

Invariant: one program reads each element of its part of a row once.
"""

import triton
from triton import language as tl


@triton.jit
def forward(x, row_weights, output, width, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (rows, blocks of a row)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up
    if HAS_WEIGHTS:
        value *= tl.load(row_weights + row).to(tl.float32)
    tl.store(output + row * width + columns, value.to(output.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    grad,
    x,
    row_weights,
    grad_x,
    output,
    grad_rows,
    width,
    STEPS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (rows, blocks of a row) and one step each; with row weights (rows, 1) and a step for each block."""
    row = tl.program_id(0).to(tl.int64)
    scale = 1.0
    if HAS_WEIGHTS:
        scale = tl.load(row_weights + row).to(tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(0, STEPS):
        columns = (tl.program_id(1) + step) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < width
        given = tl.load(grad + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(x + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(x + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        activated = gate * sigmoid
        value = activated * up
        if HAS_WEIGHTS:
            total += given * value
            value *= scale
            given *= scale
        grad_gate = given * up * (sigmoid + activated * (1.0 - sigmoid))
        tl.store(grad_x + row * 2 * width + columns, grad_gate.to(grad_x.dtype.element_ty), mask=inside)
        tl.store(
            grad_x + row * 2 * width + width + columns, (given * activated).to(grad_x.dtype.element_ty), mask=inside
        )
        tl.store(output + row * width + columns, value.to(output.dtype.element_ty), mask=inside)
    if HAS_WEIGHTS:
        tl.store(grad_rows + row, tl.sum(total, axis=0))
