"""Fast versions of the operations that a training step consists of, one operation a file.

Invariant: beside each fast version stands a plain PyTorch version that computes the same. It is the oracle in tests,
and it runs wherever the fast one cannot. `pentad.kernels.selection` decides which version is used; nothing else does.
"""
