"""Causal self-attention over packed sequences.

Invariant: a token attends to itself and to earlier tokens of its own sequence, and to nothing else, whatever else
is in the pack, and however the pack is split over context-parallel ranks. Grouped key/value heads are repeated only
where heads are exchanged and there are fewer of them than context-parallel ranks.

Context parallelism is by exchange of heads where these divide (`layout.context`; https://arxiv.org/abs/2309.14509):
each rank holds a run of the pack's tokens and gives it for all tokens of some of the heads. Else keys and values are
gathered (https://arxiv.org/abs/2407.21783, section 3.3.2): each rank keeps its own queries, of all heads.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import all_to_all, gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pentad.kernels.attention import attention_plain, packed_attention
from pentad.kernels.rotary import rotate
from pentad.kernels.selection import PLAIN, Kernels
from pentad.trainers.megatron.packing import PackedInputs
from pentad.trainers.megatron.runs import KeyBounds, in_order

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
        if packed.runs:
            return self._on_all_keys(query, key, value, packed).reshape(query.shape[0], 1, -1)
        if self.context.size() > 1:
            query = self._tokens_for_heads(query)
            key, value = self._tokens_for_heads(self._replicate(key)), self._tokens_for_heads(self._replicate(value))
        query, key = self._rotate(query, packed), self._rotate(key, packed)
        if needs_padding(query.device, query.dtype):
            output = self._padded(query, key, value, packed)
        else:
            bounds = (packed.cu_seqlens_q, packed.cu_seqlens_kv, packed.max_seqlen_q, packed.max_seqlen_kv)
            output = self._fast(query, key, value, *bounds)
        if self.context.size() > 1:
            output = self._heads_for_tokens(output)
        return output.reshape(output.shape[0], 1, -1)

    def _on_all_keys(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedInputs) -> Tensor:
        """Attention of this rank's queries, run by run, on the keys and values of all context-parallel ranks.

        Keys are rotated before they are gathered, so each of them is once.
        """
        query, key = self._rotate(query, packed), self._gather(self._rotate(key, packed))
        value = self._gather(value)
        outputs = []
        for part, run in zip(query.chunk(len(packed.runs)), packed.runs, strict=True):
            seen = slice(run.keys.start, run.keys.stop)
            outputs.append(self._on_run(part, key[seen], value[seen], run))
        return torch.cat(outputs)

    def _on_run(self, query: Tensor, key: Tensor, value: Tensor, run: KeyBounds) -> Tensor:
        if needs_padding(query.device, query.dtype):
            return attention_plain(query, key, value, run.query_lengths, self.softmax_scale, run.key_lengths)
        longest = max(run.query_lengths), max(run.key_lengths)
        return self._fast(query, key, value, run.cu_seqlens_q, run.cu_seqlens_k, *longest)

    def _gather(self, x: Tensor) -> Tensor:
        """`[T / context, heads, head_dim]` to `[T, heads, head_dim]`; gradients are summed over ranks and scattered."""
        return in_order(gather_from_sequence_parallel_region(x, group=self.context), self.context.size())

    def _rotate(self, x: Tensor, packed: PackedInputs) -> Tensor:
        return rotate(x, packed.cos, packed.sin, version=self.kernels.rotary)

    def _fast(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
    ) -> Tensor:
        return packed_attention(
            query,
            key,
            value,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            scale=self.softmax_scale,
            version="flash4" if self.kernels.attention == "flash4" else "varlen",
        )

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
