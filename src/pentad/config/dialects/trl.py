"""TRL: fields of `GRPOConfig`, arguments of `GRPOTrainer`, of PEFT's `LoraConfig`, and of its command line.

Invariant: a field of `transformers.TrainingArguments` that is not named here is unknown, and said to be.
"""

from collections.abc import Iterator
from typing import Any

from pentad.config.dialects import values as v
from pentad.config.dialects.rules import Dialect, Nothing, Rule, Unsupported, lacking, nothing, part, take

_STEPS = "counted in steps"
_BUDGET = "in tokens on one rank"
_SPEED = "decides speed and memory only; engine and trainer here choose for themselves"
# Sections that a user may have put them into.
SECTIONS = "trainer|training|algorithm|grpo|args|experiment|rollout|data|model"
_IN = rf"(?:(?:{SECTIONS}|GRPOConfig|SFTConfig|TrainingArguments)\.)?"


def _std(value: Any) -> Any:
    if value in ("batch",):
        return Unsupported("divide advantages by the standard deviation of the batch")
    if value in ("group", "none"):
        return value == "group"
    return v.flag(value)


def _loggers(value: Any) -> Any:
    return ["console"] if value in ("none", None) else v.loggers(value)


def _schedule() -> Iterator[Rule]:
    yield take(f"{_IN}learning_rate", "trainer.optimizer.lr", v.number)
    yield take(f"{_IN}weight_decay", "trainer.optimizer.weight_decay", v.number)
    yield take(f"{_IN}max_grad_norm", "trainer.optimizer.grad_clip", v.number)
    yield part(f"{_IN}adam_beta([12])", r"beta\1", v.number, "both in one list")
    yield take(f"{_IN}adam_epsilon", "trainer.optimizer.eps", v.number)
    yield take(f"{_IN}lr_scheduler_type", "trainer.schedule.name", v.schedule)
    yield part(f"{_IN}warmup_steps", "warmup_steps", _ratio_or_steps)
    yield part(f"{_IN}warmup_ratio", "warmup_ratio", v.number, "in steps")
    yield part(f"{_IN}max_steps", "steps", _steps)
    yield part(f"{_IN}num_train_epochs", "epochs", v.number, _STEPS)
    yield take(f"{_IN}eval_steps", "trainer.test_freq", v.every)
    yield take(f"{_IN}save_steps", "trainer.save_freq", v.every, "in steps")
    yield take(f"{_IN}save_total_limit", "trainer.max_ckpt_to_keep", v.keep)
    yield take(f"{_IN}eval_on_start", "trainer.val_before_train", v.flag)
    yield Rule(
        f"{_IN}(save_strategy|eval_strategy|evaluation_strategy)",
        does="by epochs: give it in steps",
        off=("steps", "no", None, False),
        learns=False,
    )
    yield take(f"{_IN}resume_from_checkpoint", "trainer.resume_mode", _resume)
    yield Rule(f"{_IN}optim", does="another optimizer than AdamW", off=("adamw_torch", "adamw_torch_fused", "adamw"))
    yield nothing(f"{_IN}lr_scheduler_kwargs(\\..*)?", "trainer.schedule.min_lr_ratio is the only one")


def _ratio_or_steps(value: Any) -> Any:
    steps = v.number(value)
    return (
        Unsupported("a part of the run: give warmup_ratio")
        if isinstance(steps, float) and 0 < steps < 1
        else (v.whole(value))
    )


def _steps(value: Any) -> Any:
    return Nothing("-1: epochs count") if value in (-1, 0) else v.whole(value)


def _resume(value: Any) -> Any:
    return {True: "auto", None: "disable", False: "disable"}.get(value, value)


def _objective() -> Iterator[Rule]:
    yield part(f"{_IN}beta", "kl", v.number, "0 keeps no reference model")
    yield part(f"{_IN}epsilon", "clip", v.number, "and algorithm.clip_high")
    yield part(f"{_IN}epsilon_high", "clip_high", v.number)
    yield lacking(f"{_IN}delta", "bound the probability ratio of negative advantages", (None,))
    yield part(f"{_IN}scale_rewards", "std", _std)
    yield part(f"{_IN}loss_type", "loss_type", v.text, "token or sequence")
    yield part(f"{_IN}importance_sampling_level", "ratio_level", v.text)
    yield part(f"{_IN}num_iterations", "reuse", v.whole)
    yield take(f"{_IN}num_generations", "rollout.n", v.whole)
    yield part(f"{_IN}num_generations_eval", "eval_n", v.whole)
    yield take(f"{_IN}mask_truncated_completions", "algorithm.overlong_filter", v.flag, "the mean is over what is kept")
    yield lacking(f"{_IN}sync_ref_model", "move the reference model along")
    yield nothing(f"{_IN}ref_model_(mixup_alpha|sync_steps)", "the reference model stays")
    yield Rule(f"{_IN}top_entropy_quantile", does="train on tokens of high entropy only", off=(1, 1.0, None))
    yield part(f"{_IN}reward_weights", "reward_weights")
    yield part(f"{_IN}vllm_importance_sampling_correction", "weights_on", v.flag)
    yield part(f"{_IN}vllm_importance_sampling_(?:cap|clip_max)", "weights_high", v.number)
    yield part(f"{_IN}vllm_importance_sampling_clip_min", "weights_low", v.number)
    modes = {f"{level}_{rule}": f"{level}_{rule}" for level in ("token", "sequence") for rule in ("truncate", "mask")}
    yield part(f"{_IN}vllm_importance_sampling_mode", "weights_mode", v.words(modes, "importance weights by"))
    yield lacking(f"{_IN}off_policy_mask_threshold", "leave out sequences that are far from the policy", (None,))
    yield lacking(f"{_IN}use_bias_correction_kl", "weigh the KL penalty, too")
    yield Rule(
        f"{_IN}multi_objective_aggregation", does="normalise rewards before they are added", off=("sum_then_normalize",)
    )
    yield Rule(f"{_IN}disable_dropout", does="train with dropout", off=(True, False, None))
    yield part(f"{_IN}max_completion_length", "max_response", v.whole)
    yield part(f"{_IN}max_prompt_length", "max_prompt", _given)
    yield take(f"{_IN}(temperature|top_p)", r"rollout.\1", v.number)
    yield lacking(f"{_IN}top_k", "sample from the most likely tokens only", (None, -1, 0))
    yield lacking(f"{_IN}min_p", "leave out unlikely tokens", (None, 0, 0.0))
    yield Rule(f"{_IN}repetition_penalty", does="another distribution than the model's", off=(1, 1.0, None))
    yield lacking(f"{_IN}(generation_kwargs|chat_template_kwargs)(\\..*)?", "further arguments of sampling", (None, {}))


def _given(value: Any) -> Any:
    return Nothing("null: prompts of any length") if value is None else v.whole(value)


def _batches() -> Iterator[Rule]:
    yield part(f"{_IN}per_device_train_batch_size", "device_samples", v.whole, _BUDGET)
    yield nothing(f"{_IN}per_device_eval_batch_size", "engines decode rollout.batch_size at once")
    yield part(
        f"{_IN}gradient_accumulation_steps",
        "accumulation",
        v.whole,
        "microbatches follow from trainer.tokens_per_microbatch",
    )
    yield part(f"{_IN}generation_batch_size", "samples", _whole_or_null)
    yield part(f"{_IN}steps_per_generation", "minibatches", _whole_or_null)
    yield part(f"{_IN}num_processes", "gpus", v.whole)
    yield part(f"{_IN}max_(?:seq_)?length", "micro_tokens", _whole_or_null, _BUDGET)
    yield take(f"{_IN}shuffle_dataset", "data.shuffle", v.flag)


def _whole_or_null(value: Any) -> Any:
    return Nothing("null: it follows from the other sizes") if value is None else v.whole(value)


def _run() -> Iterator[Rule]:
    yield take(f"{_IN}report_to", "trainer.logger", _loggers, "a list")
    yield take(
        f"{_IN}(?:bf16|fp16)",
        "trainer.dtype",
        lambda value: "bf16" if v.flag(value) is True else Nothing("off"),
        "bf16 or fp32",
    )
    yield take(f"{_IN}gradient_checkpointing", "megatron.transformer.recompute_granularity", v.recompute, "full")
    yield nothing(f"{_IN}gradient_checkpointing_kwargs(\\..*)?", "each layer is recomputed by itself")
    yield take(f"{_IN}output_dir", "experiment.dir", v.text)
    yield part(f"{_IN}run_name", "name", v.text)
    yield take(f"{_IN}(?:data_)?seed", "experiment.seed", v.whole)
    yield take(rf"{_IN}model_name_or_path|GRPOTrainer\.model|SFTTrainer\.model|model", "model.path", v.text)
    yield part(f"{_IN}dataset_name", "train", v.text)
    yield part(f"{_IN}dataset_config", "train_config", _text)
    yield part(f"{_IN}dataset_train_split", "train_split", v.text)
    yield nothing(f"{_IN}dataset_test_split", "data.eval names the sources of evaluations")
    yield part(r"(?:GRPO|SFT)Trainer\.train_dataset\.path", "train", v.text)
    yield part(r"(?:GRPO|SFT)Trainer\.train_dataset\.name", "train_config", _text)
    yield part(r"(?:GRPO|SFT)Trainer\.train_dataset\.split", "train_split", v.text)
    yield part(r"(?:GRPO|SFT)Trainer\.eval_dataset\.path", "eval", v.text)
    yield part(r"(?:GRPO|SFT)Trainer\.eval_dataset\.split", "eval_split", v.text)
    yield part(rf"{_IN}reward_funcs|GRPOTrainer\.reward_funcs", "rewards", _rewards, "reward.name: module:function")
    yield nothing(r"(GRPO|SFT)Trainer\.(args|processing_class|tokenizer|peft_config)", "its parts are read one by one")
    yield part(f"{_IN}use_vllm", "engine", lambda value: "vllm" if v.flag(value) is True else "hf", "the engine")
    yield part(f"{_IN}vllm_mode", "colocated", v.words({"colocate": True, "server": False}, "engines"), "the engine")
    yield part(f"{_IN}vllm_gpu_memory_utilization", "vllm_share", v.number)
    yield part(f"{_IN}vllm_tensor_parallel_size", "engine_t", v.count)
    yield take(f"{_IN}vllm_enable_sleep_mode", "rollout.sleep", v.flag)
    lora = r"(?:LoraConfig\.|GRPOTrainer\.peft_config\.)?"
    yield part(f"{_IN}use_peft", "use_lora", v.flag)
    yield part(rf"LoraConfig\.r|{_IN}lora_r", "lora_rank", v.whole)
    yield part(rf"{lora}lora_alpha", "lora_alpha", v.number)
    yield take(rf"{lora}lora_dropout", "model.lora.dropout", v.number)
    yield part(rf"LoraConfig\.target_modules|{_IN}lora_target_modules", "lora_targets", v.lora_targets)
    yield take(r"LoraConfig\.use_rslora|use_rslora", "model.lora.rslora", v.flag)
    yield Rule(r"LoraConfig\.bias", does="train biases too", off=("none",))
    yield nothing(r"LoraConfig\.task_type|lora_task_type", "the model is a language model")
    yield nothing(
        f"{_IN}(logging_\\w+|log_\\w+|disable_tqdm|remove_unused_columns|push_to_hub|hub_\\w+|dataloader_\\w+"
        "|do_train|do_eval|ddp_\\w+|tf32|torch_dtype|dtype|attn_implementation|use_liger_kernel|use_liger_loss|vllm_\\w+"
        "|ds3_gather_for_generation|cache_implementation|use_transformers_paged|num_completions_to_print|wandb_\\w+"
        "|overwrite_output_dir|model_init_kwargs(\\..*)?|deepspeed|fsdp\\w*|group_by_length|auto_find_batch_size"
        "|num_machines|mixed_precision|main_process_port|config_file|use_cache|cast_lm_head_to_fp32)",
        _SPEED,
    )
    yield lacking(f"{_IN}trust_remote_code", "run code of the model's repository", learns=False)
    yield lacking(f"{_IN}load_in_[48]bit", "train on quantised weights")


def _text(value: Any) -> Any:
    return Nothing("null is the default") if value is None else v.text(value)


def _rewards(value: Any) -> Any:
    named = value if isinstance(value, list) else [value]
    for name in named:
        if not isinstance(name, str) or ":" not in name:
            return Unsupported(
                f"the reward {name}: write it in a file of its own, and name it as FILE.py:FUNCTION (reward.name)"
            )
    return named


TRL = Dialect(
    name="trl",
    title="TRL",
    rules=(*_schedule(), *_objective(), *_batches(), *_run()),
    signs=(
        r"(GRPOConfig\.|GRPOTrainer\.|SFTConfig\.|SFTTrainer\.|LoraConfig\.).*",
        "num_generations",
        "per_device_train_batch_size",
        "max_completion_length",
        "gradient_accumulation_steps",
        "reward_funcs",
        "num_train_epochs",
        "model_name_or_path",
        "use_vllm",
        "learning_rate",
    ),
    modules=("trl", "trl."),
    defaults={
        "learning_rate": 1e-6,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "weight_decay": 0.0,
        "lr_scheduler_type": "linear",
        "num_generations": 8,
        "max_completion_length": 256,
        "max_prompt_length": 512,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_iterations": 1,
        "num_train_epochs": 3.0,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_cap": 3.0,
        "seed": 42,
        "save_steps": 500,
    },
    warmup_unit="update",
    steps_unit="update",
)
