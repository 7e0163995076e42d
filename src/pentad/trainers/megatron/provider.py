"""The modules that Megatron builds its layers from, with Pentad's kernels instead of Transformer Engine.

Invariant: everything that Megatron's own local modules refuse (sequence parallelism in norms, packed sequences in
attention) is supplied here, and what the selected kernels compute faster; everything else is Megatron's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from pentad.kernels.selection import PLAIN, Kernels
from pentad.trainers.megatron.attention import PackedAttention
from pentad.trainers.megatron.experts import GroupedExperts
from pentad.trainers.megatron.linear import ColumnLinear, RowLinear
from pentad.trainers.megatron.mlp import GatedMLP, GatedMLPSubmodules
from pentad.trainers.megatron.norm import FastRMSNorm, RMSNorm
from pentad.trainers.megatron.router import AdaptedRouter


class TorchSpecProvider(LocalSpecProvider):
    """Megatron's local modules with Pentad's norm, attention and experts; the rest as the kernels say.

    Args:
        kernels: which version of each operation is used.
    """

    def __init__(self, kernels: Kernels = PLAIN) -> None:
        self.kernels = kernels

    def column_parallel_linear(self) -> type:
        return super().column_parallel_linear() if self.kernels.linear == "plain" else ColumnLinear

    def row_parallel_linear(self) -> type[RowParallelLinear]:
        return super().row_parallel_linear() if self.kernels.linear == "plain" else RowLinear

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type[RMSNorm]:
        return RMSNorm if self.kernels.norm == "plain" else FastRMSNorm

    # Megatron annotates its own class or a type here, and calls whatever it is given.
    def core_attention(self) -> Callable[..., PackedAttention]:  # ty: ignore
        return partial(PackedAttention, kernels=self.kernels)

    def grouped_mlp_modules(self, moe_use_grouped_gemm: bool) -> Callable[..., GroupedExperts]:
        return partial(GroupedExperts, kernels=self.kernels)

    def mlp(self, config: TransformerConfig, has_experts: bool) -> Callable[..., Any]:
        """The dense MLP or the mixture of experts of a layer."""
        version = self.kernels.mlp
        if has_experts or version == "plain":
            experts = config.num_moe_experts if has_experts else None
            made = get_mlp_module_spec_for_backend(self, num_experts=experts)
            if not has_experts:
                return made
            return partial(MoELayer, submodules=replace(made.keywords["submodules"], router=AdaptedRouter))
        parts = GatedMLPSubmodules(
            linear_fc1=self.column_parallel_linear(), linear_fc2=self.row_parallel_linear(), version=version
        )
        return partial(GatedMLP.as_mlp_submodule, submodules=parts)


def layer_spec(config: TransformerConfig, provider: TorchSpecProvider, has_experts: bool) -> ModuleSpec:
    """One decoder layer: norm, attention, norm, and experts or a dense MLP."""
    qk_norm = provider.layer_norm(rms_norm=True, for_qk=True) if config.qk_layernorm else IdentityOp
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=provider.layer_norm(rms_norm=True),
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=provider.column_parallel_linear(),
                    core_attention=provider.core_attention(),
                    linear_proj=provider.row_parallel_linear(),
                    q_layernorm=qk_norm,
                    k_layernorm=qk_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=provider.layer_norm(rms_norm=True),
            mlp=provider.mlp(config, has_experts),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def block_spec(
    config: TransformerConfig, has_experts: Sequence[bool], kernels: Kernels = PLAIN
) -> TransformerBlockSubmodules:
    """The decoder layers of one pipeline stage, and the final norm.

    Args:
        has_experts: of each layer that this stage holds, in order.
        kernels: which version of each operation is used.
    """
    provider = TorchSpecProvider(kernels)
    specs = {kind: layer_spec(config, provider, kind) for kind in set(has_experts)}
    return TransformerBlockSubmodules(
        layer_specs=[specs[kind] for kind in has_experts], layer_norm=provider.layer_norm(rms_norm=True)
    )
