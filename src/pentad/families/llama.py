"""Llama 2 and 3 (https://arxiv.org/abs/2307.09288, https://arxiv.org/abs/2407.21783), and models built like them."""

from pentad.families.blocks import ATTENTION, DENSE_MLP, NORMS
from pentad.families.family import Family

FAMILY = Family(
    name="llama",
    attention=(*NORMS, *ATTENTION),
    dense_mlp=DENSE_MLP,
    nullable=frozenset({"head_dim", "num_key_value_heads"}),
    tiny={"llama": {}, "llama_tied": {"tie_word_embeddings": True}},
)
