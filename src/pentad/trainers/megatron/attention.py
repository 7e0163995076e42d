"""Causal self-attention over packed sequences.

Invariant: a token attends to itself and to earlier tokens of its own sequence, and to nothing else, whatever else
is in the pack, and however the pack is split over context-parallel ranks. Grouped key/value heads are repeated only
where there are fewer of them than context-parallel ranks.

Context parallelism is by exchange of heads (https://arxiv.org/abs/2309.14509): each rank holds a run of the pack's
tokens and gives it for all tokens of some of the heads.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import all_to_all
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pentad.kernels.attention import attention_plain, packed_attention
from pentad.kernels.rotary import rotate
from pentad.kernels.selection import PLAIN, Kernels
from pentad.trainers.megatron.packing import PackedInputs

# A padded rectangle may hold this many times the tokens of the pack before sequences are taken one by one.
_MOST_PADDING = 3.0


def needs_padding(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention there has no variable-length kernel and works on a padded rectangle."""
    return device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16)


class PackedAttention(MegatronModule):
    """Megatron's core attention, on `PackedInputs`.

    Rotation happens here rather than in Megatron, which would loop over the sequences of a pack on the host.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        kernels: Kernels = PLAIN,
    ) -> None:
        super().__init__(config=config)
        self.kernels = kernels
        if attention_dropout or config.attention_dropout:
            raise ValueError("attention dropout is not supported")
        if pg_collection is None:
            raise ValueError("attention needs its process groups")
        self.layer_number = layer_number
        self.context = pg_collection.cp
        self.softmax_scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedInputs | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: `[T / context, 1, heads, head_dim]`, not yet rotated.
            key, value: `[T / context, 1, key/value heads, head_dim]`.
            packed_seq_params: the whole pack.

        Returns:
            `[T / context, 1, heads * head_dim]`.
        """
        packed = packed_seq_params
        if not isinstance(packed, PackedInputs) or packed.cos is None or packed.sin is None:
            raise TypeError("attention needs the PackedInputs of its microbatch")
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        if self.context.size() > 1:
            query = self._tokens_for_heads(query)
            key, value = self._tokens_for_heads(self._replicate(key)), self._tokens_for_heads(self._replicate(value))
        query, key = (rotate(x, packed.cos, packed.sin, version=self.kernels.rotary) for x in (query, key))
        if needs_padding(query.device, query.dtype):
            output = self._padded(query, key, value, packed)
        else:
            output = packed_attention(
                query,
                key,
                value,
                cu_seqlens_q=packed.cu_seqlens_q,
                cu_seqlens_k=packed.cu_seqlens_kv,
                max_seqlen_q=packed.max_seqlen_q,
                max_seqlen_k=packed.max_seqlen_kv,
                scale=self.softmax_scale,
                version="flash4" if self.kernels.attention == "flash4" else "varlen",
            )
        if self.context.size() > 1:
            output = self._heads_for_tokens(output)
        return output.reshape(output.shape[0], 1, -1)

    def _replicate(self, x: Tensor) -> Tensor:
        """Key/value heads, repeated so that every context-parallel rank gets the one that its queries use."""
        heads, ranks = x.shape[1], self.context.size()
        return x.repeat_interleave(ranks // heads, dim=1) if heads < ranks else x

    def _tokens_for_heads(self, x: Tensor) -> Tensor:
        """`[T / context, heads, head_dim]` to `[T, heads / context, head_dim]`."""
        ranks = self.context.size()
        tokens, heads, head_dim = x.shape
        send = x.view(tokens, ranks, heads // ranks, head_dim).transpose(0, 1).contiguous()
        return all_to_all(self.context, send.flatten(0, 1))

    def _heads_for_tokens(self, x: Tensor) -> Tensor:
        """`[T, heads / context, head_dim]` to `[T / context, heads, head_dim]`."""
        ranks = self.context.size()
        received = all_to_all(self.context, x.contiguous())
        return received.view(ranks, -1, *x.shape[1:]).transpose(0, 1).flatten(1, 2)

    def _padded(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedInputs) -> Tensor:
        """Attention on `[S, longest]`; causality alone keeps real tokens from seeing the padding behind them."""
        tokens, longest = query.shape[0], packed.max_seqlen_q
        if len(packed.lengths) * longest > _MOST_PADDING * tokens:
            return attention_plain(query, key, value, list(packed.lengths), self.softmax_scale)

        def rectangle(x: Tensor) -> Tensor:
            padded = torch.cat((x, x.new_zeros(1, *x.shape[1:])))
            return padded[packed.padded_index].transpose(1, 2)

        output = self._dense(rectangle(query), rectangle(key), rectangle(value))
        return output.transpose(1, 2).flatten(0, 1)[packed.flat_index]

    def _dense(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.shape[1] != key.shape[1]
        )
