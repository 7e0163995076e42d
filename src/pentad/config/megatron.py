"""Pass-through settings of Megatron-Core, checked against its own dataclass fields before they are used."""

from typing import Any

from pydantic import Field

from pentad.config.base import Settings


class MegatronSettings(Settings):
    """`megatron.*`"""

    use_deterministic_algorithms: bool = Field(
        False, description="the trainer computes the same bits from the same batch, run after run; slower on GPUs"
    )
    transformer: dict[str, Any] = Field(default_factory=dict, description="fields of TransformerConfig")
    ddp: dict[str, Any] = Field(default_factory=dict, description="fields of DistributedDataParallelConfig")
    optimizer: dict[str, Any] = Field(default_factory=dict, description="fields of OptimizerConfig")
