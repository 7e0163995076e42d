"""One optimizer step of one rank: clip, update, move the schedule; plain, or in one pass.

Invariant: a gradient norm that is not finite leaves weights, moments and schedule as they were.
"""

import math

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from pentad.trainers.megatron.fused_step import fused_clip_and_update
from pentad.trainers.megatron.optimizer import clip_and_update, prepare_gradients


def plain_step(optimizer: MegatronOptimizer, schedule: OptimizerParamScheduler, max_norm: float) -> dict[str, float]:
    """By Megatron's own functions, which know `max_norm` already; returns `train/grad_norm` and what was counted."""
    norm = prepare_gradients(optimizer)
    if not math.isfinite(norm):
        return {"train/grad_norm": norm}
    schedule.step(increment=1)
    zeros = clip_and_update(optimizer, norm)
    return {"train/grad_norm": norm, **({} if zeros is None else {"train/grad_zeros": float(zeros)})}


def fused_step(optimizer: MegatronOptimizer, schedule: OptimizerParamScheduler, max_norm: float) -> dict[str, float]:
    """The same by `fused_clip_and_update`; the host waits once."""
    schedule.step(increment=1)
    counted = {}
    if optimizer.config.log_num_zeros_in_grad:
        counted["train/grad_zeros"] = float(optimizer.count_zeros())
    norm = fused_clip_and_update(optimizer, max_norm)
    if not math.isfinite(norm):
        schedule.step(increment=-1)
    return {"train/grad_norm": norm, **counted}
