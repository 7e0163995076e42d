"""Pass-through settings of Megatron-Core, checked against its own dataclass fields before they are used."""

from typing import Any

from pydantic import Field

from pentad.config.schema.base import Settings


class MegatronSettings(Settings):
    """`megatron.*`"""

    use_deterministic_algorithms: bool = Field(
        False, description="the trainer computes the same bits from the same batch, run after run; slower on GPUs"
    )
    transformer: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of TransformerConfig that are shown to work: recompute_*, deallocate_pipeline_outputs, "
        "moe_shared_expert_overlap, moe_router_load_balancing_type, moe_aux_loss_coeff, moe_z_loss_coeff",
    )
    ddp: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of DistributedDataParallelConfig, as overlap_grad_reduce, bucket_size",
    )
    optimizer: dict[str, Any] = Field(
        default_factory=dict,
        description="fields of OptimizerConfig: decoupled_weight_decay, log_num_zeros_in_grad",
    )
