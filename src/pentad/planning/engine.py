"""Predicted memory of a rollout engine on each of its GPUs.

Invariant: a prediction is a sum of named components, each a product of sizes and of coefficients in `Coefficients`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pentad.families.facts import ModelFacts
from pentad.layout.layout import Component
from pentad.planning.coefficients import BYTES, DEFAULT, Coefficients
from pentad.planning.parameters import model_parameters

ENGINE_COMPONENTS = ("weights", "cache", "logits", "overhead")
# The hf engine allocates its key/value cache for all sequences at once, in steps of so many tokens.
_CAPACITY_STEP = 128


@dataclass(frozen=True)
class EngineWork:
    """What one engine generates.

    Attributes:
        sequences: that it decodes at once.
        tokens: of the longest sequence, prompt and response.
        dtype: `bf16` or `fp32`.
        sleeps: whether its memory is released while the trainer works.
        adapted: parameters of which an hf engine keeps a second copy, as adapters are merged into them anew each time.
    """

    sequences: int = 64
    tokens: int = 4096
    dtype: str = "bf16"
    sleeps: bool = False
    adapted: int = 0


@dataclass(frozen=True)
class EngineMemory:
    """Predicted memory on each GPU of an engine.

    Attributes:
        components: component (`ENGINE_COMPONENTS`) -> bytes.
        work: what it was predicted for.
    """

    components: Mapping[str, int]
    work: EngineWork

    @property
    def total(self) -> int:
        """Bytes of the GPU's memory."""
        return sum(self.components.values())


def predict_engine(
    facts: ModelFacts, component: Component, work: EngineWork, table: Coefficients = DEFAULT
) -> EngineMemory:
    """Predicted memory on each GPU of a rollout component.

    An hf engine is one GPU and holds the cache of all sequences. The others divide weights and heads by t and layers by
    p; their cache is paged, so that one longest sequence is the least that they need.
    """
    layout, width = component.layout, BYTES[work.dtype]
    weights = model_parameters(facts) * width / (layout.tensor * layout.pipeline)
    tokens = work.tokens
    if component.backend == "hf":
        weights += work.adapted * width
        tokens = work.sequences * -(-work.tokens // _CAPACITY_STEP) * _CAPACITY_STEP
    cache = tokens * cache_bytes_per_token(facts, work.dtype, layout.tensor, layout.pipeline)
    logits = work.sequences * facts.vocab_size / layout.tensor * table.engine_logits
    overhead = table.context_bytes + table.fragmentation * (weights + cache + logits)
    sizes = (weights, cache, logits, overhead)
    return EngineMemory({name: int(size) for name, size in zip(ENGINE_COMPONENTS, sizes, strict=True)}, work)


def cache_bytes_per_token(facts: ModelFacts, dtype: str, tensor: int = 1, pipeline: int = 1) -> float:
    """Bytes of the keys and values of one token on each GPU; a GPU holds at least one key/value head."""
    heads = max(1.0, facts.num_kv_heads / tensor)
    return 2 * facts.num_layers / pipeline * heads * facts.head_dim * BYTES[dtype]
