"""How context-parallel ranks share the attention of a pack: by heads, or by queries.

Pure: follows from the sizes of the model and the layout alone, so the trainer, its ranks and `pentad plan` agree.
"""

from typing import Literal

from pentad.families.facts import ModelFacts
from pentad.layout.layout import Layout

# Megatron's names of them (`cp_comm_type`).
ContextMethod = Literal["a2a", "all_gather"]


def context_method(facts: ModelFacts, layout: Layout) -> ContextMethod | None:
    """How context-parallel ranks share attention; None without context parallelism.

    `a2a`: heads are exchanged; a rank then has all tokens of some of the heads. That needs heads for every rank:
    t * c divides the heads, and divides the key/value heads or is a multiple of them, as these may be repeated.
    `all_gather`, where it does not: keys and values are gathered; a rank has its own queries, and all keys.
    """
    if layout.context == 1:
        return None
    ranks, kv_heads = layout.tensor * layout.context, facts.num_kv_heads
    return "a2a" if facts.num_heads % ranks == 0 and 0 in (kv_heads % ranks, ranks % kv_heads) else "all_gather"
