"""The sizes of a model that its weight mapping depends on.

Invariant: read from the Hugging Face configuration once; every size is a whole number that is really there.
"""

from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Geometry:
    """Sizes of one model.

    Attributes:
        layers: decoder layers.
        heads, kv_heads: query heads and key/value heads.
        head_dim: elements of one head.
        vocab_size: token ids in the checkpoint, before padding.
        tied: the output layer is the embedding.
        experts: routed experts of a mixture layer; 0 in a dense model.
        experts_per_token: how many of them a token is sent to.
        expert_ffn: inner width of one of them.
        shared_ffn: inner width of the shared expert; 0 where there is none.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    tied: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Self:
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            ffn=config.intermediate_size,
            vocab_size=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            experts=getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0,
            experts_per_token=getattr(config, "num_experts_per_tok", None) or 0,
            # Mixtral has no dense layers and calls the experts' width the intermediate size.
            expert_ffn=getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
            shared_ffn=getattr(config, "shared_expert_intermediate_size", None) or 0,
        )

    def padded_vocab(self, ranks: int) -> int:
        """Vocabulary rounded up so that every tensor-parallel rank holds the same number of rows."""
        return -(-self.vocab_size // ranks) * ranks
