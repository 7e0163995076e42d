"""AReaL: `actor.*`, `rollout.*`, `gconfig.*`, `train_dataset.*`, `allocation_mode`."""

from collections.abc import Iterator
from typing import Any

from pentad.config.dialects import values as v
from pentad.config.dialects.megatron import OFFLOAD, sizes
from pentad.config.dialects.rules import CRITIC, Dialect, Nothing, Rule, Unsupported, lacking, nothing, part, take

_BESIDE = "a service of AReaL's own; Ray starts the processes here"
_SPEED = "decides speed and memory only; engine and trainer here choose for themselves"
_TRIAL = "one run, one directory: experiment.dir"


def _level(value: Any) -> Any:
    return v.words({"group": True, "none": False, "null": False, None: False}, "rewards normalised over the")(value)


def _actor() -> Iterator[Rule]:
    yield take(r"actor\.path", "model.path", v.text)
    yield take(r"actor\.dtype", "trainer.dtype", v.dtype)
    yield take(r"actor\.gradient_checkpointing", "megatron.transformer.recompute_granularity", v.recompute)
    yield take(r"actor\.optimizer\.(lr|eps|weight_decay)", r"trainer.optimizer.\1", v.number)
    yield part(r"actor\.optimizer\.beta([12])", r"beta\1", v.number)
    yield take(r"actor\.optimizer\.gradient_clipping", "trainer.optimizer.grad_clip", v.number)
    yield take(r"actor\.optimizer\.lr_scheduler_type", "trainer.schedule.name", v.schedule)
    yield part(r"actor\.optimizer\.warmup_steps_proportion", "warmup_ratio", v.number, "in steps")
    yield part(r"actor\.optimizer\.min_lr_ratio", "min_lr_ratio", v.number)
    yield Rule(r"actor\.optimizer\.type", does="another optimizer than AdamW", off=("adam", "adamw", None))
    yield lacking(r"actor\.optimizer\.offload", OFFLOAD, learns=False)
    yield nothing(r"actor\.optimizer\.\w*(loss_scale|hysteresis)\w*", "there is no float16, so nothing is scaled")
    yield part(r"actor\.eps_clip", "clip", v.number, "and algorithm.clip_high")
    yield part(r"actor\.eps_clip_higher", "clip_high", v.number)
    yield lacking(r"actor\.c_clip", "bound the loss of negative advantages (dual clip)", (None,))
    yield Rule(r"actor\.kl_ctl", key="algorithm.kl_coef", convert=_kl)
    yield nothing(r"actor\.kl_estimator", "there is no KL penalty")
    yield part(r"actor\.ppo_n_minibatches", "minibatches", v.whole)
    yield part(r"actor\.mb_spec\.max_tokens_per_mb", "micro_tokens", v.whole)
    yield nothing(r"actor\.mb_spec\..*", "microbatches are planned by tokens")
    yield part(r"actor\.backend", "trainer_layout", v.text)
    yield part(r"actor\.use_lora|rollout\.use_lora", "use_lora", v.flag)
    yield part(r"actor\.lora_rank", "lora_rank", v.whole)
    yield part(r"actor\.lora_alpha", "lora_alpha", v.number)
    yield part(r"actor\.target_modules", "lora_targets", v.lora_targets)
    yield Rule(r"actor\.peft_type", does="another adapter than LoRA", off=("lora", None))
    yield from _normalisation()
    yield from _off_policy()
    yield take(r"actor\.megatron\.use_deterministic_algorithms", "megatron.use_deterministic_algorithms", v.flag)
    yield take(r"actor\.megatron\.(recompute_\w+)", r"megatron.transformer.\1", _given)
    yield take(
        r"actor\.megatron\.ddp\.(overlap_grad_reduce|grad_reduce_in_fp32|bucket_size|use_distributed_optimizer"
        r"|check_for_nan_in_grad)",
        r"megatron.ddp.\1",
        _given,
    )
    yield from sizes(r"actor\.megatron\.")
    yield lacking(r"actor\.megatron\.\w*(offload|fp8)\w*(\..*)?", OFFLOAD, learns=False)
    yield nothing(r"actor\.megatron\.wrap_with_ddp", "the trainer always is")
    yield nothing(
        r"actor\.megatron\.(bridge_type|use_mbridge|async_save|\w*checkpoint\w*|virtual_\w+)",
        "weights and checkpoints have formats of their own here",
    )
    yield lacking(r"actor\.megatron\..*", "a choice of AReaL's Megatron engine", learns=False)
    yield take(r"actor\.temperature", "rollout.temperature", v.number)
    yield part(r"actor\.max_new_tokens", "max_response", v.whole)
    yield nothing(
        r"actor\.(fsdp|archon)(\..*)?|actor\.(attn_impl|pad_to_maximum|grad_reduce_dtype|weight_update_mode"
        r"|log_agent_stats\w*|scheduling_\w+(\..*)?|experiment_name|trial_name|is_critic|group_size|discount"
        r"|gae_lambda|use_kernels|tree_training_mode|pad_to_multiple_of|enable_tree_training|offload)",
        _SPEED,
    )
    yield Rule(r"actor\.init_from_scratch", does="begin with random weights", off=(False, None))
    yield Rule(r"actor\.disable_dropout", does="train with dropout", off=(True, None))


def _given(value: Any) -> Any:
    return Nothing("null is the default") if value is None else value


def _kl(value: Any) -> Any:
    weight = v.number(value)
    if weight == 0.0:
        return weight
    return Unsupported(
        "take a KL penalty from the reward token by token, after rewards are normalised "
        "(here: algorithm.kl_coef, with algorithm.kl_in loss or reward)"
    )


def _normalisation() -> Iterator[Rule]:
    yield take(r"actor\.reward_norm\.std_level", "algorithm.advantage_std", _level)
    yield Rule(
        r"actor\.reward_norm\.mean_level", does="rewards without the mean of their group taken off", off=("group",)
    )
    yield nothing(r"actor\.reward_norm\..*", "the group is the rollout.n samples of a prompt")
    yield lacking(
        r"actor\.adv_norm\.(mean_level|std_level)",
        "normalise advantages over the batch once more",
        (None, "none", "null"),
    )
    yield nothing(r"actor\.adv_norm(\..*)?", "advantages are not normalised once more")
    yield Rule(r"actor\.reward_scaling", does="multiply rewards", off=(1, 1.0, None))
    yield Rule(r"actor\.reward_bias", does="add to rewards", off=(0, 0.0, None))
    yield Rule(r"actor\.reward_clip", does="cut large rewards", off=(None,))
    yield nothing(r"actor\.(group_reward_norm|reward_norm)", "rewards are normalised over their group")
    yield lacking(r"actor\.(overlong_reward_penalty|mask_no_eos_with_zero)", "another reward for long responses")
    yield nothing(r"actor\.overlong_\w+", "long responses are rewarded as others")


def _off_policy() -> Iterator[Rule]:
    yield part(r"rollout\.max_head_offpolicyness", "staleness", v.whole)
    yield Rule(r"actor\.recompute_logprob", does="the engine's log-probs in place of the trainer's", off=(True, None))
    yield lacking(r"actor\.use_decoupled_loss", "weigh samples of older weights (decoupled PPO)")
    yield lacking(r"actor\.behave?_imp_weight_\w+", "bound the weights of samples of older weights", (None, "null"))
    yield lacking(
        r"actor\.(dynamic_sampling|use_sapo_loss|use_m2po_loss|use_cispo_loss)",
        "another choice of samples or another loss",
        (None, False),
    )
    yield part(r"actor\.importance_sampling_level", "ratio_level", v.text)
    yield lacking(r"actor\.(entropy_coeff?|m2_threshold)", "a term of another loss", (None, 0, 0.0))
    yield nothing(r"actor\.(sapo_\w+|prox_logp_method)", "a value of another loss")


def _rollout() -> Iterator[Rule]:
    yield part(r"rollout\.backend", "engine_layout", v.text)
    yield nothing(
        r"rollout\.(max_concurrent_rollouts|queue_size|consumer_batch_size|enable_rollout_tracing|dump_to_file"
        r"|check_trajectory_format|schedule_policy|setup_timeout|request_timeout|request_retries|pause_grace_period"
        r"|experiment_name|trial_name|fileroot|tokenizer_path|scheduling_spec|return_routed_experts|openai(\..*)?"
        r"|scheduling_strategy(\..*)?|_version|max_workers|log_agent_stats\w*)",
        _BESIDE,
    )
    yield take(r"gconfig\.n_samples", "rollout.n", v.whole)
    yield part(r"gconfig\.max_new_tokens", "max_response", v.whole)
    yield take(r"gconfig\.(temperature|top_p)", r"rollout.\1", v.number)
    yield take(r"gconfig\.stop", "rollout.stop", v.names)
    yield lacking(r"gconfig\.(greedy|ignore_eos|use_beam_search)", "another way of sampling")
    yield Rule(r"gconfig\.top_k", does="sample from the most likely tokens only", off=(None, -1, 0, 100000000))
    yield lacking(r"gconfig\.(min_new_tokens|frequency_penalty)", "another distribution than the model's")
    yield lacking(r"gconfig\.stop_token_ids", "end responses at other tokens", (None, []))
    yield nothing(r"gconfig\.(lora_name|skip_special_tokens|max_tokens)", "there is no such choice here")
    yield part(r"eval_gconfig\.temperature", "eval_temperature", v.number)
    yield lacking(r"eval_gconfig\..*", "other sampling in evaluations", (None,), learns=False)


def _data() -> Iterator[Rule]:
    yield part(r"train_dataset\.path", "train", v.text)
    yield part(r"train_dataset\.split", "train_split", v.text)
    yield part(r"valid_dataset\.path", "eval", v.text)
    yield part(r"valid_dataset\.split", "eval_split", v.text)
    yield part(r"train_dataset\.batch_size", "prompts", v.whole)
    yield take(r"train_dataset\.shuffle", "data.shuffle", v.flag)
    yield part(r"train_dataset\.max_length", "max_prompt", v.whole, "longer rows are dropped there: data.too_long")
    yield Rule(r"(train|valid)_dataset\.type", does="another kind of data", off=("rl", "sft", None))
    yield nothing(
        r"(train|valid)_dataset\.(pin_memory|num_workers|drop_last|reward_fn|scheduling_spec)",
        "rows are read whole, once",
    )
    yield nothing(r"valid_dataset\.(batch_size|shuffle|max_length)", "all rows are evaluated")


def _rest() -> Iterator[Rule]:
    yield part(r"experiment_name", "name", v.text)
    yield part(r"trial_name", "trial", v.text)
    yield take(r"seed", "experiment.seed", v.whole)
    yield take(r"tokenizer_path", "model.tokenizer", v.text)
    yield part(r"allocation_mode", "allocation", v.text)
    yield part(r"cluster\.n_nodes", "nodes", v.whole, "the number of GPUs follows from the layouts")
    yield part(r"cluster\.n_gpus_per_node", "gpus_per_node", v.whole, "the number of GPUs follows from the layouts")
    yield nothing(r"cluster\..*", _BESIDE)
    yield part(r"total_train_epochs", "epochs", v.whole, "counted in steps")
    yield part(r"total_train_steps", "steps", v.whole, "counted in steps")
    yield lacking(r"total_train_n_seqs", "end after so many samples", (None,))
    yield take(r"(saver|recover|checkpointer)\.freq_steps", "trainer.save_freq", _every)
    yield part(r"saver\.freq_epochs", "save_epochs", v.whole, "in steps")
    yield take(r"evaluator\.freq_steps", "trainer.test_freq", _every)
    yield part(r"evaluator\.freq_epochs", "test_epochs", v.whole, "in steps")
    yield part(r"recover\.mode", "resume", v.text)
    yield lacking(
        r"(saver|recover|checkpointer|evaluator)\.freq_secs", "by the clock: give it in steps", (None,), learns=False
    )
    yield nothing(r"(recover|checkpointer)\.freq_epochs", "one interval for all checkpoints: trainer.save_freq")
    yield nothing(r"(saver|recover|checkpointer|evaluator|stats_logger)\..*", _TRIAL)
    yield nothing(
        r"(scheduler|launcher|perf_tracer|rw|session_tracer|performance|enable_offload|async_training"
        r"|weight_update_mode|exp_type|log_level)(\..*)?",
        _BESIDE,
    )
    yield nothing(r"ref\..*", "the reference model is the initial one, with the trainer's layout")
    yield nothing(r"(critic|teacher)\..*", CRITIC)
    yield part(r"vllm\.gpu_memory_utilization|sglang\.mem_fraction_static", "vllm_share", v.number)
    yield take(r"vllm\.(enforce_eager|max_num_batched_tokens)", r"rollout.vllm.\1", _given)
    yield take(r"vllm\.max_num_seqs|sglang\.max_running_requests", "rollout.batch_size", _count_or_default)
    yield nothing(r"(vllm|sglang)(\..*)?", _SPEED)


def _every(value: Any) -> Any:
    return Nothing("null: not counted in steps") if value is None else v.every(value)


def _count_or_default(value: Any) -> Any:
    return Nothing("null is the default") if value is None else v.count(value)


AREAL = Dialect(
    name="areal",
    title="AReaL",
    rules=(*_actor(), *_rollout(), *_data(), *_rest()),
    signs=(
        r"allocation_mode",
        r"gconfig\..*",
        r"train_dataset\..*",
        r"rollout\.max_head_offpolicyness",
        r"actor\.(path|megatron\..*|eps_clip|mb_spec\..*)",
        r"actor\.optimizer\..*",
    ),
    modules=("areal.", "examples.math."),
    defaults={
        "gconfig.n_samples": 1,
        "gconfig.max_new_tokens": 16384,
        "actor.optimizer.lr": 2e-5,
        "actor.optimizer.weight_decay": 0.05,
        "actor.optimizer.beta1": 0.9,
        "actor.optimizer.beta2": 0.95,
        "actor.optimizer.eps": 1e-5,
        "actor.optimizer.warmup_steps_proportion": 0.001,
        "actor.ppo_n_minibatches": 4,
        "actor.kl_ctl": 0.1,
        "rollout.max_head_offpolicyness": 0,
        "total_train_epochs": 1,
    },
)
