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
from pentad.layout import Layout
from pentad.layout.megatron_checks import check_transformer
from pentad.layout.pipeline import stage_layers
from pentad.layout.validate import refuse
from pentad.trainers.megatron.passthrough import make_config
from pentad.trainers.megatron.provider import block_spec
from pentad.weights.facts import model_facts
from pentad.weights.families import family_of
from pentad.weights.geometry import Geometry


def transformer_config(
    config: PreTrainedConfig, layout: Layout, dtype: torch.dtype, megatron: MegatronSettings
) -> TransformerConfig:
    """Megatron's configuration of a model under a layout.

    Args:
        megatron: what the user sets.

    Raises:
        UserError: a field that does not exist, is settled elsewhere, or that Megatron refuses.
    """
    geometry = Geometry.of(config)
    settings: dict[str, Any] = {
        "num_layers": geometry.layers,
        "hidden_size": geometry.hidden,
        "num_attention_heads": geometry.heads,
        "num_query_groups": geometry.kv_heads,
        "kv_channels": geometry.head_dim,
        "ffn_hidden_size": geometry.ffn,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.rms_norm_eps,
        "gated_linear_unit": True,
        "activation_func": functional.silu,
        "add_bias_linear": False,
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
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "sequence_parallel": layout.sequence_parallel,
        # Packs differ in length.
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",
        **_pipeline(config, layout),
        **_mixture(geometry),
        **family_of(config).transformer(config),
    }
    made = make_config(TransformerConfig, settings, megatron.transformer, "transformer")
    refuse(check_transformer(model_facts(config), layout, megatron.transformer), "megatron.transformer")
    return made


def _pipeline(config: PreTrainedConfig, layout: Layout) -> dict[str, Any]:
    """Which layers each stage holds: embedding and output layer are weighed against decoder layers."""
    if layout.pipeline == 1:
        return {}
    stages: list[list[str]] = [["decoder"] * count for count in stage_layers(model_facts(config), layout)]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    settings: dict[str, Any] = {"pipeline_model_parallel_layout": stages}
    if layout.virtual > 1:
        # Exchanged in one batch, forward and backward messages of two stages could not be told apart.
        settings |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    return settings


def _mixture(geometry: Geometry) -> dict[str, Any]:
    """The experts of a mixture model; no auxiliary loss, no dropped tokens."""
    if not geometry.experts:
        return {}
    return {
        "num_moe_experts": geometry.experts,
        "moe_router_topk": geometry.experts_per_token,
        "moe_ffn_hidden_size": geometry.expert_ffn,
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
    config: PreTrainedConfig, megatron: TransformerConfig, layout: Layout, groups: ProcessGroupCollection
) -> list[Chunk]:
    """The layers of this rank, with uninitialised weights, on the current device: one chunk a virtual stage."""
    geometry = Geometry.of(config)
    rank, stages = groups.pp.rank(), groups.pp.size()
    chunks = []
    for virtual in range(layout.virtual):
        stage = virtual if layout.virtual > 1 else None
        module = GPTModel(
            config=megatron,
            transformer_layer_spec=block_spec(megatron, get_num_layers_to_build(megatron, stage, rank)),
            vocab_size=geometry.padded_vocab(layout.tensor),
            max_sequence_length=config.max_position_embeddings,
            pre_process=rank == 0 and virtual == 0,
            post_process=rank == stages - 1 and virtual == layout.virtual - 1,
            share_embeddings_and_output_weights=geometry.tied,
            # PackedAttention rotates; see its docstring.
            position_embedding_type="none",
            pg_collection=groups,
            vp_stage=stage,
        )
        chunks.append(Chunk(module, get_transformer_layer_offset(megatron, stage, rank)))
    return chunks
