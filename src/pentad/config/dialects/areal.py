"""AReaL: `actor.*`, `rollout.*`, `gconfig.*`, `train_dataset.*`, `allocation_mode`."""

from collections.abc import Callable, Iterator
from typing import Any

from pentad.config.dialects import values as v
from pentad.config.dialects.critic import LAYOUT
from pentad.config.dialects.megatron import OFFLOAD, sizes
from pentad.config.dialects.rules import Dialect, Nothing, Rule, lacking, nothing, part, take

_BESIDE = "a service of AReaL's own; Ray starts the processes here"
_SPEED = "decides speed and memory only; engine and trainer here choose for themselves"
_TRIAL = "one run, one directory: experiment.dir"


def _one_of(what: str, *words: str) -> Callable[[Any], Any]:
    return v.words({word: word for word in words}, what)


_LEVELS = {"group": "group", "batch": "batch", "none": "none", "null": "none"}


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
    yield part(r"actor\.kl_ctl", "areal_kl", v.number, "in the reward of each token")
    yield part(
        r"actor\.kl_estimator", "areal_kl_type", v.words({"k1": "k1", "k2": "k2", "k3": "k3"}, "a KL penalty by")
    )
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
        r"|log_agent_stats\w*|scheduling_\w+(\..*)?|experiment_name|trial_name|is_critic|group_size"
        r"|use_kernels|tree_training_mode|pad_to_multiple_of|enable_tree_training|offload)",
        _SPEED,
    )
    yield Rule(r"actor\.init_from_scratch", does="begin with random weights", off=(False, None))
    yield Rule(r"actor\.disable_dropout", does="train with dropout", off=(True, None))


def _given(value: Any) -> Any:
    return Nothing("null is the default") if value is None else value


def _normalisation() -> Iterator[Rule]:
    for field in ("mean", "std"):
        yield part(rf"actor\.reward_norm\.{field}_level", f"norm_{field}", v.words(_LEVELS, "rewards less those of a"))
        yield part(rf"actor\.adv_norm\.{field}_level", f"adv_{field}", v.words(_LEVELS, "advantages less those of a"))
    yield part(r"actor\.reward_norm\.mean_leave1out", "norm_leave_one_out", v.flag)
    yield lacking(r"actor\.adv_norm\.mean_leave1out", "advantages less the mean of the others")
    yield Rule(
        r"actor\.(reward|adv)_norm\.std_unbiased", does="a deviation over n, not n - 1", off=(True, None), learns=False
    )
    yield nothing(r"actor\.(reward|adv)_norm\..*", "the group is the rollout.n samples of a prompt")
    yield nothing(r"actor\.(adv_norm|reward_norm|group_reward_norm)", "nothing is normalised by it")
    yield part(r"actor\.reward_(scaling|bias|clip)", r"reward_\1", v.number)
    yield part(r"actor\.overlong_reward_penalty", "overlong_on", v.flag)
    yield part(r"actor\.overlong_tokens", "overlong_len", v.whole, "a part of rollout.max_response_tokens")
    yield part(r"actor\.overlong_penalty_factor", "overlong_factor", v.number)
    yield lacking(
        r"(actor|critic)\.mask_no_eos_with_zero",
        "reward 0 for responses that do not end, after rewards are normalised (here: algorithm.overlong_filter leaves "
        "them out)",
    )
    yield part(r"actor\.discount", "gamma", v.number)
    yield part(r"actor\.gae_lambda", "gae_lambda", v.number)


def _critic() -> Iterator[Rule]:
    yield take(r"critic\.path", "critic.model", v.text)
    yield take(r"critic\.optimizer\.(lr|eps|weight_decay)", r"critic.optimizer.\1", v.number)
    yield take(r"critic\.optimizer\.gradient_clipping", "critic.optimizer.grad_clip", v.number)
    yield take(r"critic\.optimizer\.lr_scheduler_type", "critic.schedule.name", v.schedule)
    yield part(r"critic\.optimizer\.beta([12])", r"critic_beta\1", v.number)
    yield part(r"critic\.optimizer\.warmup_steps_proportion", "critic_warmup_ratio", v.number)
    yield take(r"critic\.optimizer\.min_lr_ratio", "critic.schedule.min_lr_ratio", v.number)
    yield part(r"critic\.eps_clip", "value_clip", v.number)
    yield part(r"critic\.ppo_n_minibatches", "critic_minibatches", v.whole)
    yield nothing(r"critic(\..*)?", LAYOUT)


def _off_policy() -> Iterator[Rule]:
    yield part(r"rollout\.max_head_offpolicyness", "staleness", v.whole)
    yield part(r"actor\.recompute_logprob", "recompute", v.flag, "trainer or rollout")
    yield part(r"actor\.use_decoupled_loss", "weights_on", v.flag)
    yield part(r"actor\.behave?_imp_weight_cap", "weights_high", v.number)
    modes = ("token_mask", "token_truncate", "disabled")
    yield part(r"actor\.behave?_imp_weight_mode", "weights_mode", _one_of("the weights:", *modes))
    sampling = r"actor\.rejection_sampling\."
    yield part(
        rf"{sampling}level", "weights_level", v.words({"token": "token"}, "importance weights by mean ratios of a")
    )
    yield part(rf"{sampling}action", "weights_rule", v.words({"mask": "mask", "clamp": "truncate"}, "weights by"))
    yield part(rf"{sampling}upper", "weights_high", v.number)
    yield part(rf"{sampling}lower", "weights_low", v.number)
    yield Rule(rf"{sampling}metric", does="leave out tokens by a divergence", off=("ratio", None))
    yield nothing(rf"{sampling}agg", "weights are of tokens")
    yield lacking(
        r"actor\.dynamic_sampling",
        "leave out groups of equal rewards, and train on a smaller batch (here: algorithm.dynamic_sampling samples "
        "other prompts in their place)",
    )
    yield lacking(r"actor\.(use_sapo_loss|use_m2po_loss|use_cispo_loss)", "another loss", (None, False))
    yield part(
        r"actor\.importance_sampling_level",
        "ratio_level",
        v.words({"token": "token", "sequence": "sequence"}, "ratios of a"),
    )
    yield lacking(r"actor\.(entropy_coeff?|m2_threshold)", "a term of another loss", (None, 0, 0.0))
    yield Rule(
        r"actor\.prox_logp_method",
        does="interpolated log-probs in place of the trainer's",
        off=("recompute", "metrics", None),
    )
    yield nothing(r"actor\.sapo_\w+", "a value of another loss")


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
    yield from _critic()
    yield nothing(r"teacher\..*", "there is no teacher")
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
        "actor.eps_clip": 0.2,
        "actor.reward_clip": 20.0,
        "actor.recompute_logprob": False,
        "actor.behave_imp_weight_mode": "token_mask",
        "actor.behave_imp_weight_cap": 5.0,
        "critic.eps_clip": 0.5,
        "critic.ppo_n_minibatches": 4,
        "rollout.max_head_offpolicyness": 0,
        "total_train_epochs": 1,
    },
)
