"""Megatron's router with room for an adapter.

Invariant: without an adapter, or with one that is off, it is Megatron's.
"""

from typing import Any

from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


class AdaptedRouter(TopKRouter):
    """An adapter is the submodule `lora`; its matrices are whole on every rank."""

    def gating(self, input: Tensor) -> Tensor:
        """`[t, 1, hidden]` to `[t, 1, experts]`, in the router's precision."""
        logits = super().gating(input)
        adapter: Any = self._modules.get("lora")
        if adapter is None or not adapter.enabled:
            return logits
        hidden = adapter.inner(input).to(logits.dtype) @ adapter.A.t().to(logits.dtype)
        return logits + adapter.scale * (hidden @ adapter.B.t().to(logits.dtype))
