"""SkyRL: `trainer.policy.*`, `trainer.algorithm.*`, `generator.*`, `environment.*`."""

from collections.abc import Iterator
from typing import Any

from pentad.config.dialects import values as v
from pentad.config.dialects.critic import LAYOUT
from pentad.config.dialects.megatron import OFFLOAD, passed_on, sizes
from pentad.config.dialects.rules import (
    Dialect,
    Nothing,
    Rule,
    Unsupported,
    lacking,
    nothing,
    part,
    take,
)

_SPEED = "decides speed and memory only; engine and trainer here choose for themselves"
_REFERENCE = "the reference model has the trainer's layout"
_ESTIMATORS = {"grpo": "grpo", "gae": "ppo", "rloo": "rloo", "reinforce++": "reinforce_pp"}
_KL_TYPES = {"k1": "k1", "k2": "k2", "k3": "k3"}


def _environment(value: Any) -> Any:
    if value == "gsm8k":
        return "gsm8k"
    return Unsupported(f"the environment {value}: write its reward as module:function (reward.name)")


def _given(value: Any) -> Any:
    return Nothing("null is the default") if value is None else value


def _policy() -> Iterator[Rule]:
    policy, optimizer = r"trainer\.policy\.", r"trainer\.policy\.optimizer_config\."
    yield take(rf"{policy}model\.path", "model.path", v.text)
    yield part(rf"{policy}model\.lora\.rank", "lora_rank", v.whole)
    yield part(rf"{policy}model\.lora\.alpha", "lora_alpha", v.number)
    yield take(rf"{policy}model\.lora\.dropout", "model.lora.dropout", v.number)
    yield part(rf"{policy}model\.lora\.target_modules|trainer\.target_modules", "lora_targets", v.lora_targets)
    yield take(rf"{policy}model\.lora\.exclude_modules|trainer\.exclude_modules", "model.lora.exclude", v.names)
    yield take(
        rf"{policy}model\.lora\.init_method",
        "model.lora.init",
        v.words({"kaiming": "kaiming", "gaussian": "gaussian", "normal": "gaussian"}, "adapters that begin by"),
    )
    yield nothing(rf"{policy}model\.lora\.\w+", "adapters are sent as other weights are")
    yield take(rf"{optimizer}(lr|weight_decay)", r"trainer.optimizer.\1", v.number)
    yield take(rf"{optimizer}adam_betas", "trainer.optimizer.betas")
    yield take(rf"{optimizer}max_grad_norm", "trainer.optimizer.grad_clip", v.number)
    yield part(rf"{optimizer}num_warmup_steps", "warmup_steps", v.whole)
    yield take(rf"{optimizer}scheduler", "trainer.schedule.name", v.schedule)
    yield nothing(rf"{optimizer}offload_after_step", "the optimizer's states stay where they are")
    config = rf"(?:{policy})?megatron_config\.(?:policy\.)?"
    yield from sizes(config)
    yield from passed_on(config, "ddp_config", "ddp")
    yield from passed_on(config, "optimizer_config_kwargs", "optimizer")
    yield from passed_on(config, "(?:transformer_config_kwargs|model_config_kwargs)", "transformer")
    yield nothing(rf"{config}(torch_profiler_config\..*|empty_cuda_cache|lora_config\..*)", _SPEED)
    yield lacking(rf"{config}.*", "a choice of SkyRL's Megatron worker", learns=False)
    yield part(rf"{policy}sequence_parallel_size", "c", v.count, "in the trainer's layout, such as megatron:d1c2")
    yield lacking(rf"{policy}fsdp_config\.cpu_offload", OFFLOAD, learns=False)
    yield lacking(rf"{policy}model_config_kwargs\..*", "change the model's configuration")
    yield nothing(
        rf"{policy}(fsdp_config|deepspeed_config|use_torch_compile|record_memory|model_config_kwargs"
        r"|language_model_only|inference_engine_init_kwargs)(\..*)?",
        _SPEED,
    )
    yield nothing(r"trainer\.ref\..*", _REFERENCE)
    critic = r"trainer\.critic\."
    yield take(rf"{critic}model\.path", "critic.model", v.text)
    yield take(rf"{critic}optimizer_config\.(lr|weight_decay)", r"critic.optimizer.\1", v.number)
    yield take(rf"{critic}optimizer_config\.adam_betas", "critic.optimizer.betas")
    yield take(rf"{critic}optimizer_config\.max_grad_norm", "critic.optimizer.grad_clip", v.number)
    yield part(rf"{critic}optimizer_config\.num_warmup_steps", "critic_warmup", v.whole)
    yield take(rf"{critic}optimizer_config\.scheduler", "critic.schedule.name", v.schedule)
    yield lacking(rf"{critic}model\.lora\.rank", "adapters on the critic", (None, 0), learns=False)
    yield nothing(rf"{critic}.*", LAYOUT)
    yield part(r"trainer\.critic_mini_batch_size", "critic_mini_prompts", v.whole)
    yield nothing(r"trainer\.reward\..*", "there is no reward model")


def _algorithm() -> Iterator[Rule]:
    prefix = r"trainer\.algorithm\."
    yield part(rf"{prefix}advantage_estimator", "estimator", v.words(_ESTIMATORS, "advantages by"))
    yield part(rf"{prefix}eps_clip_(low|high)", r"clip_\1", v.number)
    yield part(rf"{prefix}use_kl_loss", "kl_loss", v.flag, "0 switches it off")
    yield part(rf"{prefix}kl_loss_coef", "kl_loss_coef", v.number, "0 switches it off")
    yield part(rf"{prefix}kl_estimator_type", "kl_loss_type", v.words(_KL_TYPES, "a KL penalty by"))
    yield part(
        rf"{prefix}use_kl_estimator_k3",
        "kl_loss_type",
        lambda value: "k3" if v.flag(value) is True else Unsupported("a KL penalty by k1"),
    )
    yield part(rf"{prefix}use_kl_in_reward", "kl_reward", v.flag)
    yield part(rf"{prefix}kl_ctrl\.type", "kl_adapted", v.words({"fixed": "fixed", "adaptive": "adaptive"}, "a KL by"))
    yield part(rf"{prefix}kl_ctrl\.kl_target", "kl_target", v.number, "per token")
    yield part(rf"{prefix}kl_ctrl\.horizon", "kl_horizon", v.number, "samples a step over the horizon")
    yield nothing(rf"{prefix}(kl_target|init_kl_coef)", "superseded by kl_ctrl and kl_loss_coef")
    yield part(rf"{prefix}grpo_norm_by_std", "std", v.flag)
    yield part(rf"{prefix}loss_reduction", "mean", v.text, "token or sequence")
    yield Rule(
        rf"{prefix}(policy_loss_type|ppo_loss_type)",
        fact="ratio_level",
        convert=v.words({"regular": "token", "gspo": "sequence", "cispo": "cispo"}, "the policy loss"),
    )
    yield nothing(rf"{prefix}clip_ratio_c", "only the loss dual_clip reads it")
    yield part(rf"{prefix}use_entropy_loss", "entropy_on", v.flag)
    yield part(rf"{prefix}entropy_loss_coef", "entropy", v.number)
    yield part(rf"{prefix}advantage_batch_normalize", "batch_norm", v.flag)
    yield from _weights(prefix)
    yield Rule(rf"{prefix}dynamic_sampling\.type", fact="dynamic_sampling", convert=_dynamic)
    yield nothing(rf"{prefix}dynamic_sampling\..*", "prompts are sampled until a step is full")
    yield lacking(rf"{prefix}zero_variance_filter", "leave groups without a difference in reward out of the mean")
    yield part(rf"{prefix}lambd", "gae_lambda", v.number)
    yield part(rf"{prefix}(gamma|value_clip)", r"\1", v.number)
    yield part(rf"{prefix}max_seq_len", "constant_length", v.whole, "rollout.max_response_tokens")
    yield part(rf"{prefix}cispo\.cispo_eps_clip_(low|high)", r"cispo_\1", v.number)
    yield nothing(rf"{prefix}(value_head_prefix|normalize_reward|use_abs_kl|temperature)", "an implementation detail")
    yield nothing(rf"{prefix}(sapo|clip_cov|kl_cov|dppo)\..*", "a value of another loss")


def _dynamic(value: Any) -> Any:
    if value in (None, "null", "filter"):
        return value == "filter"
    return Unsupported(f"by {value}: put copies of other groups in place of those of equal rewards")


def _weights(prefix: str) -> Iterator[Rule]:
    """Importance weights, and their older form."""
    section = rf"{prefix}off_policy_correction\."
    yield part(rf"{prefix}use_tis", "weights_on", v.flag)
    yield part(rf"{prefix}tis_imp_ratio_cap", "weights_high", _cap)
    level = v.words({"token": "token", "sequence": "sequence", "null": Nothing("off")}, "importance weights of a")
    yield part(rf"{section}tis_ratio_type", "weights_level", level)
    yield part(rf"{section}token_tis_ratio_clip_high", "weights_high", v.number)
    yield part(rf"{section}sequence_tis_ratio_clip_high", "weights_high_sequence", v.number)
    yield lacking(
        rf"{section}(sequence_mask_metric|outlier_token_is_threshold_\w+|token_mask_is_threshold_\w+)",
        "leave out samples beside their weights",
        (None, "null"),
    )
    yield nothing(rf"{section}\w+", "no sample is left out")


def _cap(value: Any) -> Any:
    largest = v.number(value)
    return Nothing("off") if isinstance(largest, float) and largest <= 0 else largest


def _trainer() -> Iterator[Rule]:
    yield part(r"trainer\.strategy", "trainer_backend", v.text)
    yield part(r"trainer\.placement\.colocate_all", "colocated", v.flag)
    yield part(r"trainer\.placement\.policy_num_nodes", "nodes", v.whole)
    yield part(r"trainer\.placement\.policy_num_gpus_per_node", "gpus_per_node", v.whole)
    yield nothing(r"trainer\.placement\..*", _REFERENCE)
    yield part(r"trainer\.train_batch_size", "prompts", v.whole)
    yield part(r"trainer\.policy_mini_batch_size", "mini_prompts", v.whole)
    yield part(r"trainer\.update_epochs_per_batch", "reuse", v.whole)
    yield part(r"trainer\.micro_train_batch_size_per_gpu", "micro_samples", v.count, "in tokens on one rank")
    yield part(r"trainer\.max_tokens_per_microbatch", "micro_tokens", v.count, "in tokens on one rank")
    yield nothing(r"trainer\.micro_forward_batch_size_per_gpu", "one budget: in tokens")
    yield part(r"trainer\.max_prompt_length", "max_prompt", v.whole)
    yield part(r"trainer\.epochs", "epochs", v.whole, "counted in steps")
    yield take(r"trainer\.eval_interval", "trainer.test_freq", v.every)
    yield take(r"trainer\.eval_before_train", "trainer.val_before_train", v.flag)
    yield take(r"trainer\.ckpt_interval", "trainer.save_freq", v.every)
    yield take(r"trainer\.hf_save_interval", "trainer.hf_save_freq", v.every)
    yield take(r"trainer\.max_ckpts_to_keep", "trainer.max_ckpt_to_keep", v.keep)
    yield take(r"trainer\.ckpt_path", "experiment.dir", v.text)
    yield nothing(r"trainer\.export_path", "models are written below experiment.dir")
    yield part(r"trainer\.resume_mode", "resume", v.text)
    yield part(r"trainer\.resume_path", "resume_path", v.text)
    yield part(r"trainer\.run_name", "name", v.text)
    yield nothing(r"trainer\.project_name", "a run is named by experiment.name alone")
    yield take(r"trainer\.logger", "trainer.logger", v.loggers)
    yield take(r"trainer\.seed", "experiment.seed", v.whole)
    yield take(r"trainer\.gradient_checkpointing", "megatron.transformer.recompute_granularity", v.recompute)
    yield take(r"trainer\.bf16", "trainer.dtype", lambda value: "bf16" if v.flag(value) is True else "fp32")
    yield part(r"trainer\.fully_async\.max_staleness_steps", "staleness", v.whole)
    yield lacking(r"trainer\.(rope_scaling|rope_theta|rope_parameters)(\..*)?", "another rotary embedding", (None,))
    yield lacking(r"trainer\.(update_ref_every_epoch|use_orm_score)", "another reference or reward")
    yield nothing(
        r"trainer\.(sequence_parallel_backend|gradient_checkpointing_use_reentrant|use_sample_packing|eval_batch_size"
        r"|flash_attn|disable_fast_tokenizer|dump_\w+|tracker_\w+|remove_microbatch_padding|fully_async\..*|log_\w+"
        r"|enable_ray_gpu_monitor|print_example_interval|export_path)",
        _SPEED,
    )
    yield part(r"data\.train_data", "train", v.sources)
    yield part(r"data\.val_data", "eval", v.eval_sources, "a mapping of names to sources")


def _generator() -> Iterator[Rule]:
    prefix = r"generator\.(?:inference_engine\.)?"
    yield take(rf"{prefix}n_samples_per_prompt", "rollout.n", v.whole)
    sampling = r"generator\.sampling_params\."
    yield part(rf"{sampling}max_generate_length", "max_response", v.whole)
    yield take(rf"{sampling}(temperature|top_p)", r"rollout.\1", v.number)
    yield take(rf"{sampling}stop", "rollout.stop", v.names)
    yield lacking(rf"{sampling}top_k", "sample from the most likely tokens only", (None, -1, 0))
    yield lacking(rf"{sampling}min_p", "leave out unlikely tokens", (None, 0, 0.0))
    yield Rule(rf"{sampling}repetition_penalty", does="another distribution than the model's", off=(1, 1.0, None))
    yield nothing(rf"{sampling}(logprobs|additional_kwargs)", "engines give log-probs in any case")
    yield part(r"generator\.eval_sampling_params\.temperature", "eval_temperature", v.number)
    yield nothing(
        r"generator\.eval_sampling_params\.(max_generate_length|logprobs|stop|additional_kwargs)",
        "evaluations sample as training does, but for rollout.eval_temperature",
    )
    yield lacking(
        r"generator\.eval_sampling_params\..*",
        "cut off unlikely tokens in evaluations",
        (None, -1, 0, 0.0, 1, 1.0),
        learns=False,
    )
    yield part(r"generator\.eval_n_samples_per_prompt", "eval_n", v.whole)


def _engines() -> Iterator[Rule]:
    prefix = r"generator\.(?:inference_engine\.)?"
    yield part(rf"{prefix}backend", "engine", v.text)
    yield part(rf"{prefix}(?:num_inference_engines|num_engines)", "engine_d", v.whole)
    yield part(rf"{prefix}(?:inference_engine_)?tensor_parallel_size", "engine_t", v.count)
    yield part(rf"{prefix}(?:inference_engine_)?pipeline_parallel_size", "engine_p", v.count)
    yield part(rf"{prefix}(?:inference_engine_)?expert_parallel_size", "engine_e", v.count)
    yield Rule(
        rf"{prefix}(?:inference_engine_)?data_parallel_size",
        does="engines of several replicas",
        off=(1, None),
        learns=False,
    )
    yield part(rf"{prefix}gpu_memory_utilization", "vllm_share", v.number)
    yield take(
        rf"{prefix}(enable_prefix_caching|enable_chunked_prefill|max_num_batched_tokens|enforce_eager)",
        r"rollout.vllm.\1",
        _given,
    )
    yield take(rf"{prefix}engine_init_kwargs\.({v.TO_VLLM})", r"rollout.vllm.\1", _given)
    yield lacking(rf"{prefix}engine_init_kwargs\..+", "an argument of vLLM's that is not passed on", (None,))
    yield take(rf"{prefix}max_num_seqs", "rollout.batch_size", v.whole)
    yield take(rf"{prefix}model_dtype", "rollout.dtype", v.dtype)
    yield Rule(r"generator\.max_turns", does="conversations of several turns", off=(1, None))
    yield Rule(rf"{prefix}run_engines_locally", does="engines on servers of their own", off=(True, None))
    yield lacking(r"generator\.zero_reward_on_non_stop", "no reward for responses that do not end")
    yield take(r"generator\.apply_overlong_filtering", "algorithm.overlong_filter", v.flag)
    yield lacking(
        r"generator\.(chat_template_kwargs|chat_template)(\..*)?",
        "another chat template",
        (None, "null", {}, "name", "model"),
    )
    yield lacking(r"generator\.(rope_scaling|rope_theta|rope_parameters)(\..*)?", "another rotary embedding", (None,))
    yield nothing(
        rf"{prefix}(weight_sync_backend|weight_transfer_\w+|async_engine|batched|max_input_length|vllm_v1_\w+|vllm_stats\w*"
        r"|remote_inference_engine_urls|remote_\w+|override_existing_update_group|use_conversation_multi_turn|enable_http_\w+"
        r"|http_endpoint_\w+|fully_sharded_loras|enable_ray_\w+|append_eos_\w+|step_wise_\w+|model_name|served_model_name"
        r"|engine_init_kwargs|external_\w+|language_model_only|distributed_executor_backend|trajectory_logging\..*)",
        _SPEED,
    )
    yield take(r"environment\.env_class", "reward.name", _environment)
    yield nothing(r"environment\..*", "rewards are functions: reward.*")
    yield nothing(
        r"(defaults|deepspeed_config|skyrl_gym_config|hydra|ray_init|megatron_config)(\..*)?", "a part of SkyRL's own"
    )


SKYRL = Dialect(
    name="skyrl",
    title="SkyRL",
    rules=(*_policy(), *_algorithm(), *_trainer(), *_generator(), *_engines()),
    signs=(
        r"generator\..*",
        r"trainer\.policy\..*",
        r"trainer\.placement\..*",
        r"trainer\.algorithm\..*",
        r"environment\.env_class",
        r"megatron_config\..*",
    ),
    modules=("skyrl", "skyrl_train."),
    defaults={
        "generator.n_samples_per_prompt": 5,
        "generator.sampling_params.max_generate_length": 1024,
        "generator.backend": "vllm",
        "generator.num_inference_engines": 1,
        "generator.inference_engine_tensor_parallel_size": 4,
        "trainer.placement.colocate_all": True,
        "trainer.placement.policy_num_nodes": 1,
        "trainer.placement.policy_num_gpus_per_node": 4,
        "trainer.max_prompt_length": 512,
        "trainer.train_batch_size": 1024,
        "trainer.policy_mini_batch_size": 256,
        "trainer.policy.optimizer_config.lr": 1e-6,
        "trainer.policy.optimizer_config.adam_betas": [0.9, 0.999],
        "trainer.policy.optimizer_config.weight_decay": 0.01,
        "trainer.algorithm.advantage_estimator": "grpo",
        "trainer.algorithm.use_kl_loss": True,
        "trainer.algorithm.kl_loss_coef": 0.001,
        "trainer.algorithm.kl_estimator_type": "k3",
        "trainer.algorithm.eps_clip_low": 0.2,
        "trainer.algorithm.eps_clip_high": 0.2,
        "trainer.algorithm.loss_reduction": "token_mean",
        "trainer.algorithm.value_clip": 0.2,
        "trainer.algorithm.entropy_loss_coef": 0.01,
        "trainer.algorithm.off_policy_correction.sequence_tis_ratio_clip_high": 5.0,
        "trainer.algorithm.cispo.cispo_eps_clip_low": 0.0,
        "trainer.algorithm.cispo.cispo_eps_clip_high": 5.0,
        "trainer.critic.optimizer_config.lr": 5e-6,
        "trainer.critic.optimizer_config.adam_betas": [0.9, 0.999],
        "trainer.critic.optimizer_config.weight_decay": 0.01,
        "trainer.critic_mini_batch_size": 256,
        "trainer.epochs": 1,
        "trainer.seed": 42,
        "generator.max_num_seqs": 1024,
        "generator.eval_sampling_params.temperature": 1.0,
        "trainer.eval_interval": 5,
        "trainer.eval_before_train": True,
        "trainer.ckpt_interval": 10,
    },
    warmup_unit="update",
)
