"""The sizes of a model: what layouts, plans, weight rules and Megatron models are made from.

Invariant: read from the configuration once; every size is a whole number that is really there.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of one model.

    Attributes:
        family: name of the model family, such as `qwen3_moe`.
        num_layers: transformer layers.
        hidden_size: width of the residual stream.
        num_heads: query heads of a layer.
        num_kv_heads: key/value heads of a layer.
        ffn_hidden_size: inner width of a dense feed-forward layer.
        vocab_size: token ids of the checkpoint, before padding; see `padded_vocab`.
        head_dim: elements of one head.
        tied: whether input and output embedding are one tensor.
        num_experts: experts of a layer; None for a dense model.
        moe_ffn_hidden_size: inner width of one expert; None for a dense model.
        experts_per_token: experts that a token is sent to; 0 for a dense model.
        shared_ffn_hidden_size: inner width of the expert that every token passes, with its gate; 0 if there is none.
        dense_layers: numbers of the layers that have no experts, in a model with experts.
        qkv_bias: whether the query, key and value projections have biases.
        qk_norm: whether queries and keys are normalised, head by head.
        max_positions: longest sequence that the model was made for; None if unknown.
        value_head: whether the output layer gives one value a token instead of logits: a critic.
    """

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    vocab_size: int
    head_dim: int
    tied: bool
    num_experts: int | None = None
    moe_ffn_hidden_size: int | None = None
    experts_per_token: int = 0
    shared_ffn_hidden_size: int = 0
    dense_layers: tuple[int, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    max_positions: int | None = None
    value_head: bool = False

    def as_critic(self) -> "ModelFacts":
        """The same decoder with a value head."""
        return replace(self, tied=False, value_head=True)

    def has_experts(self, layer: int) -> bool:
        """Whether that layer, counted from 0, has experts."""
        return self.num_experts is not None and layer not in self.dense_layers

    def padded_vocab(self, ranks: int) -> int:
        """The vocabulary, rounded up so that every tensor-parallel rank holds the same number of rows."""
        return -(-self.vocab_size // ranks) * ranks
