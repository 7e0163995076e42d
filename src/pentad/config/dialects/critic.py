"""Settings of critics: rules for the systems that have them in verl's form, and what is put together.

Invariant: the critic has the trainer's layout, dtype, microbatches and number of optimizer steps; what asks for others
is refused where there is a critic.
"""

from collections.abc import Iterator

from pentad.config.dialects import values as v
from pentad.config.dialects.facts import Sheet
from pentad.config.dialects.rules import CRITIC, Rule, lacking, nothing, part, take

LAYOUT = "the critic has the trainer's layout, dtype and token budget"
_SIZES = ("critic_mini_prompts", "critic_minibatches")
_FACTS = ("critic_beta1", "critic_beta2", "critic_warmup", "critic_warmup_ratio", "critic_min_lr", *_SIZES)


def like_verl(prefix: str) -> Iterator[Rule]:
    """`critic.*` of verl, siiRL and Trinity-RFT."""
    optim = rf"{prefix}optim\."
    head = "its output layer is replaced; here the new one begins at zero"
    yield take(rf"{prefix}model\.path", "critic.model", v.text, head)
    yield take(rf"{optim}(lr|weight_decay|eps)", r"critic.optimizer.\1", v.number)
    yield take(rf"{optim}betas", "critic.optimizer.betas")
    yield take(rf"{prefix}grad_clip|{optim}clip_grad", "critic.optimizer.grad_clip", v.number)
    yield take(rf"{optim}(lr_scheduler_type|warmup_style|lr_decay_style)", "critic.schedule.name", v.schedule)
    yield part(rf"{optim}lr_warmup_steps", "critic_warmup", v.count)
    yield part(rf"{optim}lr_warmup_steps_ratio", "critic_warmup_ratio", v.number)
    yield take(rf"{optim}min_lr_ratio", "critic.schedule.min_lr_ratio", v.number)
    yield part(rf"{optim}min_lr", "critic_min_lr", v.number)
    yield Rule(rf"{optim}optimizer", does="another optimizer than AdamW", off=("adam", "adamw", "AdamW", "Adam", None))
    yield nothing(rf"{optim}.*", "the schedule runs over the whole of the run")
    yield part(rf"{prefix}cliprange_value", "value_clip", v.number)
    yield part(rf"{prefix}ppo_mini_batch_size", "critic_mini_prompts", v.whole)
    yield Rule(
        rf"{prefix}ppo_epochs", does="train the critic on each batch more than once", off=(1, None), learns=False
    )
    yield Rule(
        rf"{prefix}loss_agg_mode",
        does="another mean of the critic's loss than over tokens",
        off=("token-mean", None),
        learns=False,
    )
    yield lacking(rf"{prefix}model\.lora_rank", "adapters on the critic", (None, 0), learns=False)
    yield nothing(
        rf"{prefix}(strategy|enable|rollout_n|nccl_timeout|shuffle|data_loader_seed|load_weight|\w*micro_batch\w*"
        rf"|\w*max_token_len\w*|use_dynamic_bsz|ulysses_sequence_parallel_size|checkpoint\..*|profiler\..*|megatron\..*"
        rf"|model\..*)",
        LAYOUT,
    )
    yield nothing(rf"{prefix}.*", CRITIC)


def assemble(sheet: Sheet, *, by_step: bool) -> None:
    """Set `critic.*` of facts, where the algorithm has a critic.

    Args:
        by_step: whether warmup is counted in rollout batches, not in optimizer steps.
    """
    if sheet.values.get("algorithm.name") != "ppo":
        sheet.nothing(CRITIC, *_FACTS)
        return
    if sheet.of("critic_beta1", "critic_beta2"):
        betas = [sheet.get("critic_beta1", 0.9), sheet.get("critic_beta2", 0.999)]
        sheet.take("critic.optimizer.betas", betas, "critic_beta1", "critic_beta2")
    updates = sheet.values.get("algorithm.optimizer_steps", 1)
    scale = updates if by_step else 1
    key = "critic.schedule.warmup_steps"
    if sheet.has("critic_warmup"):
        sheet.take(key, sheet.get("critic_warmup") * scale, "critic_warmup")
    elif sheet.has("critic_warmup_ratio"):
        steps = sheet.values.get("trainer.total_steps")
        if steps is None and sheet.get("critic_warmup_ratio"):
            sheet.refuse(
                "a part of the run, whose length is not known: give trainer.total_steps", "critic_warmup_ratio"
            )
        unit = (steps or 0) * updates // scale
        sheet.take(key, int(sheet.get("critic_warmup_ratio", 0.0) * unit) * scale, "critic_warmup_ratio")
    sheet.nothing("the number of steps counts", "critic_warmup_ratio")
    highest = sheet.values.get("critic.optimizer.lr", 1e-5)
    if sheet.has("critic_min_lr") and highest:
        sheet.take("critic.schedule.min_lr_ratio", sheet.get("critic_min_lr") / highest, "critic_min_lr")
    prompts = sheet.values.get("trainer.prompts_per_step", 0)
    asked = sheet.get("critic_minibatches", -(-prompts // max(1, sheet.get("critic_mini_prompts", prompts or 1))))
    if sheet.of(*_SIZES) and asked != updates:
        sheet.refuse(f"{asked} optimizer steps of the critic a step, and {updates} of the policy", *_SIZES)
    sheet.nothing("the critic has as many optimizer steps as the policy", *_SIZES)
