"""Which adapters vLLM takes beside its weights, and what it has to be told for that.

Invariant: where `choose` gives a `HotLora`, every adapter of the run is one that vLLM computes and that can be read
back from its buffers; otherwise it says why not, and the engine is sent merged weights. vLLM is not imported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pentad.config.schema.lora import LoraSettings
from pentad.families.lora import Targets

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The sizes that vLLM makes its buffers in.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")


@dataclass(frozen=True)
class HotLora:
    """Adapters that vLLM takes beside the weights.

    Attributes:
        rank: of the adapters.
        scale: what `B A x` is multiplied by.
        shapes: of each matrix, by Hugging Face name.
    """

    rank: int
    scale: float
    shapes: Mapping[str, tuple[int, int]]

    @property
    def buffer_rank(self) -> int:
        """Rank of vLLM's buffers."""
        return next(size for size in _RANKS if size >= self.rank)

    @property
    def elements(self) -> int:
        """Elements of vLLM's buffers, over all tensor-parallel workers; what each of them holds whole counts once."""
        return sum(rows * columns for rows, columns in self.shapes.values()) // self.rank * self.buffer_rank

    def arguments(self) -> dict[str, Any]:
        """For AsyncEngineArgs: one adapter at a time, in layers that have one."""
        return {
            "enable_lora": True,
            "max_lora_rank": self.buffer_rank,
            "max_loras": 1,
            "max_cpu_loras": 1,
            "lora_dtype": "auto",
            "fully_sharded_loras": False,
            "lora_target_modules": sorted({name.split(".")[-3] for name in self.shapes}),
        }


def choose(config: "PreTrainedConfig", settings: LoraSettings) -> HotLora | str:
    """What vLLM is to be told of the adapters, or why it cannot take them beside the weights."""
    # Seconds to import, for which who checks settings has no use.
    from pentad.weights.adapters import adapter_shapes
    from pentad.weights.mapping import WeightMapping

    if settings.rank > _RANKS[-1]:
        return f"vLLM takes adapters of rank {_RANKS[-1]} at most"
    mapping = WeightMapping(config, None, Targets(settings.targets, settings.exclude))
    if mapping.facts.num_experts:
        return "Pentad has not shown vLLM's adapters for mixtures of experts"
    shapes = adapter_shapes(config, mapping, settings.rank)
    for module in mapping.adapted_modules():
        if not _LINEAR.fullmatch(module):
            return f"Pentad has not shown vLLM's adapters for {module}"
    return HotLora(settings.rank, settings.scale, shapes)
