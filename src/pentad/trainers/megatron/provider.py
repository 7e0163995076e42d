"""The modules that Megatron builds its layers from, with PyTorch kernels instead of Transformer Engine.

Invariant: everything that Megatron's own local modules refuse (sequence parallelism in norms, packed sequences in
attention) is supplied here; everything else is Megatron's.
"""

from collections.abc import Sequence

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from pentad.trainers.megatron.attention import PackedAttention
from pentad.trainers.megatron.experts import GroupedExperts
from pentad.trainers.megatron.norm import RMSNorm


class TorchSpecProvider(LocalSpecProvider):
    """Megatron's local linear layers with Pentad's norm, attention and experts."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type[RMSNorm]:
        return RMSNorm

    def core_attention(self) -> type[PackedAttention]:
        return PackedAttention

    # Megatron annotates its own class here, and calls whatever it is given.
    def grouped_mlp_modules(self, moe_use_grouped_gemm: bool) -> type[GroupedExperts]:  # ty: ignore
        return GroupedExperts


def layer_spec(config: TransformerConfig, provider: BackendSpecProvider, has_experts: bool) -> ModuleSpec:
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
            mlp=get_mlp_module_spec_for_backend(provider, num_experts=config.num_moe_experts if has_experts else None),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def block_spec(config: TransformerConfig, has_experts: Sequence[bool]) -> TransformerBlockSubmodules:
    """The decoder layers of one pipeline stage, and the final norm.

    Args:
        has_experts: of each layer that this stage holds, in order.
    """
    provider = TorchSpecProvider()
    specs = {kind: layer_spec(config, provider, kind) for kind in set(has_experts)}
    return TransformerBlockSubmodules(
        layer_specs=[specs[kind] for kind in has_experts], layer_norm=provider.layer_norm(rms_norm=True)
    )
