"""A Megatron model for one rank, from a Hugging Face configuration.

Invariant: the model computes what transformers computes from the same configuration and weights; a setting of the
user that Megatron does not have, or that would contradict the layout, is refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch.nn import functional
from transformers import PreTrainedConfig

from pentad.config.schema.megatron import MegatronSettings
from pentad.families.facts import ModelFacts
from pentad.families.hf_config import facts_from_config, transformer_fields
from pentad.kernels.selection import PLAIN, Kernels
from pentad.layout import Layout
from pentad.layout.context import context_method
from pentad.layout.megatron_checks import check_transformer
from pentad.layout.pipeline import stage_layers
from pentad.layout.validate import refuse
from pentad.trainers.megatron.passthrough import make_config
from pentad.trainers.megatron.provider import block_spec
from pentad.trainers.megatron.value_head import ValueHead


def transformer_config(
    config: PreTrainedConfig, layout: Layout, dtype: torch.dtype, megatron: MegatronSettings
) -> TransformerConfig:
    """Megatron's configuration of a model under a layout.

    Args:
        megatron: what the user sets.

    Raises:
        UserError: a field that does not exist, is settled elsewhere, or that Megatron refuses.
    """
    facts = facts_from_config(config.to_dict())
    settings: dict[str, Any] = {
        "num_layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "num_attention_heads": facts.num_heads,
        "num_query_groups": facts.num_kv_heads,
        "kv_channels": facts.head_dim,
        "ffn_hidden_size": facts.ffn_hidden_size,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "gated_linear_unit": True,
        "activation_func": functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": facts.qkv_bias,
        "qk_layernorm": facts.qk_norm,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        # These fusions are compiled at run time, which needs a compiler on the user's machine.
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
        "deterministic_mode": megatron.use_deterministic_algorithms,
        # Weights come from a checkpoint.
        "perform_initialization": False,
        "calculate_per_token_loss": True,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "cp_comm_type": context_method(facts, layout),
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "sequence_parallel": layout.sequence_parallel,
        # Packs differ in length.
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",
        **_pipeline(facts, layout),
        **_mixture(facts),
        **transformer_fields(config.to_dict()),
    }
    made = make_config(TransformerConfig, settings, megatron.transformer, "transformer")
    refuse(check_transformer(facts, layout, megatron.transformer), "megatron.transformer")
    return made


def _pipeline(facts: ModelFacts, layout: Layout) -> dict[str, Any]:
    """Which layers each stage holds: embedding and output layer are weighed against decoder layers."""
    if layout.pipeline == 1:
        return {}
    stages: list[list[str]] = [["decoder"] * count for count in stage_layers(facts, layout)]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    settings: dict[str, Any] = {"pipeline_model_parallel_layout": stages}
    if layout.virtual > 1:
        # Exchanged in one batch, forward and backward messages of two stages could not be told apart.
        settings |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    return settings


def _mixture(facts: ModelFacts) -> dict[str, Any]:
    """The experts of a mixture model, and which of its layers have them; no auxiliary loss, no dropped tokens."""
    if facts.num_experts is None:
        return {}
    layers = [int(facts.has_experts(layer)) for layer in range(facts.num_layers)]
    return {
        "num_moe_experts": facts.num_experts,
        "moe_layer_freq": layers if facts.dense_layers else 1,
        "moe_router_topk": facts.experts_per_token,
        "moe_ffn_hidden_size": facts.moe_ffn_hidden_size,
        "moe_shared_expert_intermediate_size": facts.shared_ffn_hidden_size or None,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_router_dtype": "fp32",
    }


@dataclass
class Chunk:
    """A run of consecutive decoder layers of one rank, with the embedding or the output layer where it has them.

    Attributes:
        layer_offset: decoder layers before its first.
    """

    module: GPTModel
    layer_offset: int


def build_chunks(
    config: PreTrainedConfig,
    megatron: TransformerConfig,
    layout: Layout,
    groups: ProcessGroupCollection,
    kernels: Kernels = PLAIN,
) -> list[Chunk]:
    """The layers of this rank, with uninitialised weights, on the current device: one chunk a virtual stage.

    Args:
        kernels: which version of each operation is used.
    """
    facts = facts_from_config(config.to_dict())
    rank, stages = groups.pp.rank(), groups.pp.size()
    chunks = []
    for virtual in range(layout.virtual):
        stage = virtual if layout.virtual > 1 else None
        first = get_transformer_layer_offset(megatron, stage, rank)
        layers = range(first, first + get_num_layers_to_build(megatron, stage, rank))
        module = GPTModel(
            config=megatron,
            transformer_layer_spec=block_spec(megatron, [facts.has_experts(layer) for layer in layers], kernels),
            vocab_size=facts.padded_vocab(layout.tensor),
            max_sequence_length=config.max_position_embeddings,
            pre_process=rank == 0 and virtual == 0,
            post_process=rank == stages - 1 and virtual == layout.virtual - 1,
            share_embeddings_and_output_weights=facts.tied,
            # PackedAttention rotates; see its docstring.
            position_embedding_type="none",
            pg_collection=groups,
            vp_stage=stage,
        )
        if facts.value_head and module.post_process:
            device = module.output_layer.weight.device
            module.output_layer = ValueHead(
                facts.hidden_size, sequence_parallel=megatron.sequence_parallel, device=device
            )
        chunks.append(Chunk(module, first))
    return chunks
