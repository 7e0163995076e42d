"""AdamW over Megatron's distributed optimizer, and the learning-rate schedule.

Decoupled weight decay: https://arxiv.org/abs/1711.05101. Invariant: the schedule moves exactly once with every
optimizer step, so the learning rate is a function of the number of steps alone.
"""

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from pentad.config.schema.trainer import OptimizerSettings, ScheduleSettings
from pentad.errors import UserError
from pentad.kernels.selection import PLAIN, Kernels
from pentad.trainers.megatron.fused_step import use_fused_adamw
from pentad.trainers.megatron.passthrough import check_kept, make_config


def ddp_config(overrides: dict[str, Any]) -> DistributedDataParallelConfig:
    """How gradients are held and reduced.

    Args:
        overrides: fields that the user sets (`megatron.ddp`).

    Raises:
        UserError: there is no such field, it is not the user's to set, or Megatron refuses its value.
    """
    defaults = {"grad_reduce_in_fp32": True, "use_distributed_optimizer": True}
    if overrides.get("bucket_size") and not overrides.get("overlap_grad_reduce"):
        raise UserError(
            "megatron.ddp.bucket_size has no effect without megatron.ddp.overlap_grad_reduce",
            "remove it, or set megatron.ddp.overlap_grad_reduce=true",
        )
    return make_config(DistributedDataParallelConfig, defaults, overrides, "ddp")


def wrap_data_parallel(
    chunks: list[GPTModel], config: TransformerConfig, overrides: dict[str, Any], groups: ProcessGroupCollection
) -> list[DistributedDataParallel]:
    """Put the model chunks' gradients into float32 buffers that data-parallel ranks reduce.

    Args:
        overrides: fields that the user sets (`megatron.ddp`).
    """
    wrapped = []
    for chunk in chunks:
        settings = ddp_config(overrides)
        try:
            model = DistributedDataParallel(config=config, ddp_config=settings, module=chunk, pg_collection=groups)
        except (ValueError, AssertionError) as error:
            raise UserError(f"Megatron refuses this configuration: {error}", "change megatron.ddp") from error
        # It changes its settings again once it knows the model.
        check_kept(settings, overrides, "megatron.ddp")
        wrapped.append(model)
    return wrapped


def optimizer_config(
    settings: OptimizerSettings,
    schedule: ScheduleSettings,
    dtype: torch.dtype,
    overrides: dict[str, Any],
    *,
    distributed: bool,
) -> OptimizerConfig:
    """AdamW in Megatron's terms.

    Args:
        overrides: fields that the user sets (`megatron.optimizer`).
        distributed: data-parallel ranks share masters and moments out.

    Raises:
        UserError: there is no such field, it is not the user's to set, or Megatron refuses its value.
    """
    return make_config(
        OptimizerConfig,
        {
            "optimizer": "adam",
            "lr": settings.lr,
            "min_lr": settings.lr * schedule.min_lr_ratio,
            "weight_decay": settings.weight_decay,
            "adam_beta1": settings.betas[0],
            "adam_beta2": settings.betas[1],
            "adam_eps": settings.eps,
            "clip_grad": settings.grad_clip,
            "bf16": dtype == torch.bfloat16,
            "params_dtype": dtype,
            "use_distributed_optimizer": distributed,
        },
        overrides,
        "optimizer",
    )


def make_optimizer(
    chunks: list[DistributedDataParallel],
    settings: OptimizerSettings,
    schedule: ScheduleSettings,
    dtype: torch.dtype,
    overrides: dict[str, Any],
    kernels: Kernels = PLAIN,
) -> MegatronOptimizer:
    """AdamW with float32 masters and moments.

    Args:
        overrides: fields that the user sets (`megatron.optimizer`).
        kernels: which version of each operation is used.
    """
    distributed = chunks[0].ddp_config.use_distributed_optimizer
    config = optimizer_config(settings, schedule, dtype, overrides, distributed=distributed)
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
    if kernels.optimizer == "fused":
        use_fused_adamw(optimizer)
    return optimizer


def make_schedule(
    optimizer: MegatronOptimizer, optimizer_settings: OptimizerSettings, schedule: ScheduleSettings, total_steps: int
) -> OptimizerParamScheduler:
    """Linear warmup, then constant, linear or cosine decay to `min_lr_ratio`.

    That is reached one step after the last: at a rate of 0 a step would train nothing.

    Args:
        total_steps: optimizer steps of the whole run.
    """
    decay = optimizer_settings.weight_decay
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=optimizer_settings.lr,
        min_lr=optimizer_settings.lr * schedule.min_lr_ratio,
        lr_warmup_steps=schedule.warmup_steps,
        lr_decay_steps=max(total_steps, schedule.warmup_steps) + 1,
        lr_decay_style=schedule.name,
        start_wd=decay,
        end_wd=decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def prepare_gradients(optimizer: MegatronOptimizer) -> float:
    """Bring the reduced gradients to the masters; returns their global norm.

    `clip_and_update` then does the rest of `MegatronOptimizer.step`, which looks at the norm only to clip by it, and
    would write what is not finite into the weights.
    """
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def clip_and_update(optimizer: MegatronOptimizer, norm: float) -> int | None:
    """Clip the prepared gradients and update the weights.

    Args:
        norm: what `prepare_gradients` returned; finite.

    Returns:
        how many elements of the gradient are zero, if `megatron.optimizer.log_num_zeros_in_grad` asks for it.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if part.config.clip_grad > 0 and (parameters := part.get_parameters()):
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, norm)
    zeros = optimizer.count_zeros() if optimizer.config.log_num_zeros_in_grad else None
    optimizer.step_with_ready_grads()
    return zeros
