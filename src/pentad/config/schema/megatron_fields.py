"""Which fields of Megatron's configurations a user may set, to which values, and who decides the others. No torch.

Invariant: a field in `SUPPORTED` is a field of Megatron's dataclass, and training with each of its values is tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WORDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Field:
    """What one field accepts.

    Attributes:
        kind: `bool`, `int`, `float` (whole numbers too), `str`, or `list` (of text).
        choices: the accepted words, or of a list the accepted items; empty for all.
        minimum: smallest accepted number; None without bound.
        optional: whether null is accepted.
    """

    kind: type
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    optional: bool = False

    @property
    def expected(self) -> str:
        """The accepted values in words."""
        if self.kind is list:
            return f"a list of {', '.join(self.choices)}"
        if self.choices:
            return " or ".join(self.choices)
        words = _WORDS[self.kind]
        return words if self.minimum is None else f"{words} of {self.minimum:g} or more"

    def accepts(self, value: Any) -> bool:
        """Whether the value may be set."""
        if value is None:
            return self.optional
        if self.kind is list:
            return isinstance(value, list) and bool(value) and all(item in self.choices for item in value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            return False
        return (not self.choices or value in self.choices) and (self.minimum is None or value >= self.minimum)


_SWITCH = Field(bool)

SUPPORTED: Mapping[str, Mapping[str, Field]] = {
    "transformer": {
        "recompute_granularity": Field(str, ("full", "selective"), optional=True),
        "recompute_method": Field(str, ("uniform", "block"), optional=True),
        "recompute_num_layers": Field(int, minimum=1, optional=True),
        "recompute_modules": Field(list, ("core_attn", "mlp", "moe", "shared_experts"), optional=True),
        "deallocate_pipeline_outputs": _SWITCH,
        "moe_shared_expert_overlap": _SWITCH,
        "moe_router_load_balancing_type": Field(str, ("none", "aux_loss")),
        "moe_aux_loss_coeff": Field(float, minimum=0),
        "moe_z_loss_coeff": Field(float, minimum=0, optional=True),
    },
    "ddp": {
        "bucket_size": Field(int, minimum=1, optional=True),
        "check_for_nan_in_grad": _SWITCH,
        "grad_reduce_in_fp32": _SWITCH,
        "overlap_grad_reduce": _SWITCH,
        "pad_buckets_for_high_nccl_busbw": _SWITCH,
        "use_distributed_optimizer": _SWITCH,
    },
    "optimizer": {"decoupled_weight_decay": _SWITCH, "log_num_zeros_in_grad": _SWITCH},
}

_OF_THE_MODEL = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "ffn_hidden_size",
    "num_moe_experts",
    "moe_layer_freq",
    "moe_router_topk",
    "moe_ffn_hidden_size",
    "normalization",
    "layernorm_epsilon",
    "layernorm_zero_centered_gamma",
    "gated_linear_unit",
    "activation_func",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "window_size",
    "softmax_scale",
    "softmax_type",
    "multi_latent_attention",
    "mtp_num_layers",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
    "moe_router_pre_softmax",
    "moe_router_score_function",
)
_OF_THE_DTYPE = dict.fromkeys(("params_dtype", "bf16", "fp16"), "trainer.dtype")

# Fields that a user may not set -> what decides them.
SETTLED: Mapping[str, Mapping[str, str]] = {
    "transformer": {
        **dict.fromkeys(_OF_THE_MODEL, "model.path"),
        **_OF_THE_DTYPE,
        "pipeline_dtype": "trainer.dtype",
        "tensor_model_parallel_size": "allocation (size t)",
        "pipeline_model_parallel_size": "allocation (size p)",
        "virtual_pipeline_model_parallel_size": "allocation (size v)",
        "pipeline_model_parallel_layout": "allocation (size p)",
        "context_parallel_size": "allocation (size c)",
        "cp_comm_type": "the model's heads and the allocation (sizes t and c)",
        "expert_model_parallel_size": "allocation (size e)",
        "expert_tensor_parallel_size": "allocation (size x)",
        "sequence_parallel": "allocation (size t)",
        "calculate_per_token_loss": "algorithm.loss_mean",
        "variable_seq_lengths": "Pentad, whose packs differ in length",
        "attention_dropout": "Pentad, whose attention has none",
        "deterministic_mode": "megatron.use_deterministic_algorithms",
    },
    # With it, other ranks' parts of the weights would arrive only in the next forward pass.
    "ddp": {"overlap_param_gather": "Pentad, which reads the weights after every step"},
    "optimizer": {
        **_OF_THE_DTYPE,
        "lr": "trainer.optimizer.lr",
        "min_lr": "trainer.schedule.min_lr_ratio",
        "weight_decay": "trainer.optimizer.weight_decay",
        "adam_beta1": "trainer.optimizer.betas",
        "adam_beta2": "trainer.optimizer.betas",
        "adam_eps": "trainer.optimizer.eps",
        "clip_grad": "trainer.optimizer.grad_clip",
        "use_distributed_optimizer": "megatron.ddp.use_distributed_optimizer",
    },
}

# Megatron without Transformer Engine accepts these and then does not do them, or refuses them only in mid-run.
NEEDS_TRANSFORMER_ENGINE = (
    "fp8",
    "fp4",
    "apply_rope_fusion",
    "moe_permute_fusion",
    "gradient_accumulation_fusion",
    "use_precision_aware_optimizer",
)
