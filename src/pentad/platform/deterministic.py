"""The same bits from run to run, on GPUs too.

Invariant: once switched on, an operation of torch either computes the same from the same input or raises; none is
quietly left as it was.
"""

import os

import torch


def make_deterministic() -> None:
    """Switch it on for this process, before its first work on a GPU.

    https://docs.pytorch.org/docs/stable/notes/randomness.html. Sums are then formed in a fixed order, which takes
    longer. Another layout or packing still sums in another order.
    """
    # cuBLAS picks kernels by the workspace that is free; NCCL sums in the order of its algorithm.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    torch.use_deterministic_algorithms(True)
    # Filling all new memory finds reads before writes, which is another matter.
    torch.utils.deterministic.fill_uninitialized_memory = False
