"""A model that holds its weights as vLLM's do: fused, stacked, split over ranks, replicated and padded."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

HIDDEN, HEADS, KEY_VALUE_HEADS, HEAD_DIM, INNER, EXPERTS, VOCABULARY, PADDED = 8, 4, 2, 6, 12, 3, 13, 16

SHAPES: dict[str, tuple[int, ...]] = {
    "embed.weight": (VOCABULARY, HIDDEN),
    "norm.weight": (HIDDEN,),
    "q.weight": (HEADS * HEAD_DIM, HIDDEN),
    "k.weight": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
    "v.weight": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
    "o.weight": (HIDDEN, HEADS * HEAD_DIM),
    "gate.weight": (INNER, HIDDEN),
    "up.weight": (INNER, HIDDEN),
    **{f"experts.{e}.{name}.weight": (INNER, HIDDEN) for e in range(EXPERTS) for name in ("gate", "up")},
    **{f"experts.{e}.down.weight": (HIDDEN, INNER) for e in range(EXPERTS)},
}


def checkpoint(seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of those shapes, in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()}


class FusedModel(nn.Module):
    """Rank `rank` of `ranks`; key/value heads are replicated where there are more ranks than heads."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks
        self.kv_ranks = min(ranks, KEY_VALUE_HEADS)
        self.kv_rank = rank * self.kv_ranks // ranks
        query, key = HEADS * HEAD_DIM // ranks, KEY_VALUE_HEADS * HEAD_DIM // self.kv_ranks
        sizes = {
            "embed": (PADDED // ranks, HIDDEN), "norm": (HIDDEN,), "qkv": (query + 2 * key, HIDDEN),
            "o": (HIDDEN, query), "gate_up": (2 * INNER // ranks, HIDDEN),
            "w13": (EXPERTS, 2 * INNER // ranks, HIDDEN), "w2": (EXPERTS, HIDDEN, INNER // ranks),
        }  # fmt: skip
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size, dtype=torch.bfloat16), requires_grad=False))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            self.load(name, tensor)

    def load(self, name: str, tensor: Tensor) -> None:
        """Put one checkpoint tensor where it belongs."""
        parts = name.split(".")
        if parts[0] == "experts":
            expert, kind = int(parts[1]), parts[2]
            width = INNER // self.ranks
            if kind == "down":
                self.w2.data[expert].copy_(tensor.narrow(1, self.rank * width, width))
            else:
                place = 0 if kind == "gate" else width
                self.w13.data[expert].narrow(0, place, width).copy_(tensor.narrow(0, self.rank * width, width))
        elif parts[0] == "embed":
            rows = PADDED // self.ranks
            mine = tensor[self.rank * rows : (self.rank + 1) * rows]
            self.embed.data[: len(mine)].copy_(mine)
            self.embed.data[len(mine) :].fill_(0)
        elif parts[0] == "norm":
            self.norm.data.copy_(tensor)
        elif parts[0] == "o":
            width = HEADS * HEAD_DIM // self.ranks
            self.o.data.copy_(tensor.narrow(1, self.rank * width, width))
        elif parts[0] in ("gate", "up"):
            width = INNER // self.ranks
            place = 0 if parts[0] == "gate" else width
            self.gate_up.data.narrow(0, place, width).copy_(tensor.narrow(0, self.rank * width, width))
        else:
            self._load_qkv(parts[0], tensor)

    def _load_qkv(self, part: str, tensor: Tensor) -> None:
        query, key = HEADS * HEAD_DIM // self.ranks, KEY_VALUE_HEADS * HEAD_DIM // self.kv_ranks
        place, size, rank = {
            "q": (0, query, self.rank), "k": (query, key, self.kv_rank), "v": (query + key, key, self.kv_rank)
        }[part]  # fmt: skip
        self.qkv.data.narrow(0, place, size).copy_(tensor.narrow(0, rank * size, size))
