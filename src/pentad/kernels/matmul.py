"""Matrix products that keep the precision of their accumulator.

Invariant: the result is float32 whatever the operands are. Rounded to bfloat16, a logit of 20 is off by up to 0.06,
and a log-prob with it; trainer and engine would disagree by that much with equal weights.
"""

import torch
from torch import Tensor


def mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in float32.

    Args:
        a: `[m, k]`, float32 or bfloat16.
        b: `[k, n]`, of the same dtype.

    Returns:
        float32 `[m, n]`; not differentiable.
    """
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
