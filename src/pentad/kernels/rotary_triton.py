"""The Triton kernel of `pentad.kernels.rotary`, which says what it computes. Importing this needs Triton.

Invariant: each element is read and written once.
"""

import triton
from triton import language as tl


@triton.jit
def rotate(
    x, cos, sin, output, token_stride, head_stride, heads, half,
    BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, blocks of heads). BACK applies the transposed rotation."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (place < half)
    dtype = output.dtype.element_ty
    table = token * 2 * half + place
    here = place < half
    cos1 = tl.load(cos + table, mask=here, other=0.0).to(dtype).to(tl.float32)
    cos2 = tl.load(cos + table + half, mask=here, other=0.0).to(dtype).to(tl.float32)
    sin1 = tl.load(sin + table, mask=here, other=0.0).to(dtype).to(tl.float32)
    sin2 = tl.load(sin + table + half, mask=here, other=0.0).to(dtype).to(tl.float32)
    source = x + token * token_stride + head * head_stride + place
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        new_first = first * cos1 + second * sin2
        new_second = second * cos2 - first * sin1
    else:
        new_first = first * cos1 - second * sin1
        new_second = second * cos2 + first * sin2
    target = output + (token * heads + head) * 2 * half + place
    tl.store(target, new_first.to(dtype), mask=inside)
    tl.store(target + half, new_second.to(dtype), mask=inside)
