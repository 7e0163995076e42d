"""verl and siiRL: `actor_rollout_ref.*`, `data.*`, `algorithm.*`, `trainer.*`."""

from collections.abc import Iterator
from typing import Any

from pentad.config.dialects import values as v
from pentad.config.dialects.critic import like_verl
from pentad.config.dialects.megatron import OFFLOAD, behind
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
_REFERENCE = "the reference model has the trainer's layout and token budget"
_DEFAULT = "an implementation detail of verl"

KL_TYPES = {
    "kl": "k1",
    "k1": "k1",
    "mse": "k2",
    "k2": "k2",
    "low_var_kl": "k3",
    "k3": "k3",
}
KL_WEIGHTS = {"fixed": "fixed", "adaptive": "adaptive"}
ESTIMATORS = {
    "grpo": "grpo",
    "gae": "ppo",
    "ppo": "ppo",
    "rloo": "rloo",
    "reinforce_plus_plus": "reinforce_pp",
    "gspo": "gspo",
    "cispo": "cispo",
    "dapo": "dapo",
    "dr_grpo": "dr_grpo",
}


def _engine_kwarg(value: Any) -> Any:
    return Nothing("null is vLLM's own default") if value is None else value


def _system_prompt(value: Any) -> Any:
    return Nothing("the tokenizer's own template") if value is None else Unsupported("another chat template")


def actor(prefix: str = r"actor_rollout_ref\.") -> Iterator[Rule]:
    """`actor_rollout_ref.model` and `.actor`."""
    model, act = rf"{prefix}model\.", rf"{prefix}actor\."
    yield nothing(rf"{prefix}hybrid_engine", "engines share the trainer's devices")
    yield take(rf"{model}path", "model.path", v.text)
    yield take(rf"{model}tokenizer_path", "model.tokenizer", v.text)
    yield take(rf"{model}enable_gradient_checkpointing", "megatron.transformer.recompute_granularity", v.recompute)
    yield part(rf"{model}lora_rank|{model}lora\.rank", "lora_rank", v.whole)
    yield part(rf"{model}lora_alpha|{model}lora\.alpha", "lora_alpha", v.number)
    yield part(rf"{model}target_modules|{model}lora\.target_modules", "lora_targets", v.lora_targets)
    yield take(rf"{model}exclude_modules|{model}lora\.exclude_modules", "model.lora.exclude", v.names)
    yield take(rf"{model}lora\.dropout", "model.lora.dropout", v.number)
    yield take(rf"{model}(lora_adapter_path|lora\.adapter_path)", "model.lora.adapter", v.text)
    yield nothing(
        rf"{model}(use_remove_padding|use_shm|use_fused_kernels|use_liger|use_fused_loss|return_last_hidden_state"
        rf"|fused_kernel_options\..*|enable_activation_offload|use_tiled_mlp|override_config\.attn_implementation)",
        _SPEED,
    )
    yield lacking(rf"{model}trust_remote_code", "run code of the model's repository", learns=False)
    yield lacking(rf"{model}external_lib", "import a library of yours before the model", (None, ""), learns=False)
    yield Rule(
        rf"{model}custom_chat_template",
        key="",
        does="another chat template: model.chat_template is its file",
        off=(None, ""),
    )
    yield lacking(rf"{model}override_config\..+", "change the model's configuration")
    yield nothing(rf"{model}(override_config|hf_config_path|tokenizer)", "the model's own files are used")
    yield from _optimizer(rf"{act}optim\.", act)
    yield from _loss(act)
    yield part(rf"{act}strategy|{prefix}ref\.strategy", "trainer_backend", v.text)
    yield part(
        rf"{act}ppo_mini_batch_size", "mini_prompts", v.whole, "the number of minibatches a step, not their size"
    )
    yield part(rf"{act}ppo_epochs", "reuse", v.whole)
    yield part(rf"{act}ppo_micro_batch_size_per_gpu", "micro_samples", v.count, "in tokens on one rank")
    yield part(rf"{act}ppo_max_token_len_per_gpu", "micro_tokens", v.whole, "in tokens on one rank")
    yield part(rf"{act}use_dynamic_bsz", "dynamic", v.flag)
    yield Rule(rf"{act}ppo_micro_batch_size", key="", why="superseded by ppo_micro_batch_size_per_gpu")
    yield part(rf"{act}ulysses_sequence_parallel_size", "c", v.count, "in the trainer's layout, such as megatron:d1c2")
    yield lacking(rf"{act}fsdp_config\.(\w*offload\w*)", OFFLOAD, learns=False)
    yield nothing(
        rf"{act}(fsdp_config\..*|use_torch_compile|shuffle|data_loader_seed|checkpoint\..*|entropy_\w+|use_prefix_grouper"
        rf"|rollout_n|use_fused_kernels|profiler?\..*|load_weight|calculate_sum_pi_squared|global_batch_info\..*)",
        _DEFAULT,
    )
    yield lacking(rf"{act}freeze_vision_tower", "leave part of the model untrained")
    yield from behind(rf"{act}megatron\.")


def _optimizer(optim: str, act: str) -> Iterator[Rule]:
    yield take(rf"{optim}lr", "trainer.optimizer.lr", v.number)
    yield part(rf"{optim}lr_warmup_steps", "warmup_steps", _or_ratio)
    yield part(rf"{optim}lr_warmup_steps_ratio", "warmup_ratio", v.number)
    yield part(rf"{optim}min_lr_ratio", "min_lr_ratio", v.number)
    yield part(rf"{optim}min_lr", "min_lr", v.number)
    yield take(rf"{optim}(lr_scheduler_type|warmup_style|lr_decay_style)", "trainer.schedule.name", v.schedule)
    yield take(rf"{optim}weight_decay", "trainer.optimizer.weight_decay", v.number)
    yield take(rf"{optim}betas", "trainer.optimizer.betas")
    yield take(rf"{optim}eps", "trainer.optimizer.eps", v.number)
    yield take(rf"{act}grad_clip|{optim}clip_grad", "trainer.optimizer.grad_clip", v.number)
    yield nothing(
        rf"{optim}(total_training_steps|lr_decay_steps|lr_wsd_decay_\w+|num_cycles|use_checkpoint_opt_param_scheduler"
        rf"|lr_warmup_init|weight_decay_incr_style|warmup_style_\w+)",
        "the schedule runs over the whole of the run",
    )
    yield Rule(rf"{optim}optimizer", does="another optimizer than AdamW", off=("adam", "adamw", "AdamW", "Adam", None))
    yield nothing(rf"{optim}(optimizer_impl|override_optimizer_config)", "the optimizer is AdamW")


def _loss(act: str) -> Iterator[Rule]:
    yield part(rf"{act}clip_ratio", "clip", v.number, "and algorithm.clip_high")
    yield part(rf"{act}clip_ratio_(low|high)", r"clip_\1", v.number)
    yield lacking(rf"{act}clip_ratio_c", "bound the loss of negative advantages (dual clip)", (None,))
    yield part(rf"{act}use_kl_loss", "kl_loss", v.flag, "0 switches it off")
    yield part(rf"{act}kl_loss_coef", "kl_loss_coef", v.number, "0 switches it off")
    yield part(rf"{act}kl_loss_type", "kl_loss_type", v.words(KL_TYPES, "a KL penalty by"), "low_var_kl is k3")
    yield part(rf"{act}loss_agg_mode", "mean", v.text, "token or sequence")
    yield Rule(
        rf"{act}policy_loss\.loss_mode|{act}loss_mode",
        fact="ratio_level",
        convert=v.words({"vanilla": "token", "gspo": "sequence", "cispo": "cispo"}, "the policy loss"),
    )
    yield lacking(rf"{act}policy_loss\..*", "a coefficient of another policy loss", (None,), learns=False)
    yield part(rf"{act}entropy_coeff", "entropy", v.number)
    yield part(rf"{act}tis_imp_ratio_cap", "weights_high", _cap, "with level token")


def _cap(value: Any) -> Any:
    largest = v.number(value)
    off = isinstance(largest, float) and largest <= 0
    return Nothing("off: samples are not weighed") if off else largest


def _or_ratio(value: Any) -> Any:
    steps = v.whole(value)
    return Nothing("negative: the ratio counts") if isinstance(steps, int) and steps < 0 else steps


def rollout(prefix: str = r"actor_rollout_ref\.") -> Iterator[Rule]:
    """`actor_rollout_ref.rollout` and `.ref`."""
    roll = rf"{prefix}rollout\."
    yield part(rf"{roll}name", "engine", v.text, "the engine: hf:d1")
    engines = "engines and their layout stand before the trainer's, such as hf:d2+megatron:t2"
    yield part(rf"{roll}tensor_model_parallel_size", "engine_t", v.count, engines)
    yield part(rf"{roll}pipeline_model_parallel_size", "engine_p", v.count, engines)
    yield nothing(rf"{roll}(data_parallel_size|nnodes|n_gpus_per_node)", "engines fill the trainer's devices")
    yield part(rf"{roll}expert_parallel_size", "engine_e", v.count)
    yield take(rf"{roll}n", "rollout.n", v.whole)
    yield take(rf"{roll}temperature", "rollout.temperature", v.number)
    yield take(rf"{roll}top_p", "rollout.top_p", v.number)
    yield lacking(rf"{roll}top_k", "sample from the most likely tokens only", (None, -1, 0))
    yield lacking(rf"{roll}ignore_eos", "go on after the end of a response")
    yield Rule(rf"{roll}do_sample", does="responses without sampling", off=(True, None))
    yield part(rf"{roll}response_length", "max_response", v.whole)
    yield part(rf"{roll}prompt_length", "max_prompt", v.whole)
    yield part(rf"{roll}gpu_memory_utilization", "vllm_share", v.number)
    yield take(
        rf"{roll}(enforce_eager|enable_chunked_prefill|enable_prefix_caching|max_num_batched_tokens)",
        r"rollout.vllm.\1",
        _engine_kwarg,
    )
    yield take(rf"{roll}engine_kwargs\.vllm\.({v.TO_VLLM})", r"rollout.vllm.\1", _engine_kwarg)
    yield lacking(rf"{roll}engine_kwargs\.vllm\..+", "an argument of vLLM's that is not passed on", (None,))
    yield take(rf"{roll}free_cache_engine", "rollout.sleep", v.flag)
    yield take(rf"{roll}max_num_seqs", "rollout.batch_size", v.whole)
    yield take(rf"{roll}dtype", "rollout.dtype", v.dtype)
    yield lacking(rf"{roll}quantization", "quantised weights in the engine", (None,))
    yield part(rf"{roll}val_kwargs\.temperature", "eval_temperature", v.number)
    yield part(rf"{roll}val_kwargs\.do_sample", "eval_sampling", v.flag)
    yield part(rf"{roll}val_kwargs\.n", "eval_n", v.whole)
    yield lacking(
        rf"{roll}val_kwargs\.(top_k|top_p)",
        "cut off unlikely tokens in evaluations",
        (None, -1, 1, 1.0, 0),
        learns=False,
    )
    yield lacking(rf"{roll}multi_turn\.(enable|enabled)", "conversations of several turns, with tools")
    yield nothing(rf"{roll}(multi_turn|agent)\..*", "responses are of one turn")
    yield nothing(
        rf"{roll}(mode|load_format|layered_summon_param|max_model_len|disable_log_stats|log_prob_\w+|calculate_log_probs"
        rf"|use_fire_sampling|engine_kwargs.*|update_weights_bucket_megabytes|chat_scheduler|prompt_length|seed"
        rf"|over_sample_rate|skip_\w+|cudagraph_capture_sizes|enable_rollout_routing_replay|server\..*|trace\..*"
        rf"|limit_images|free_kv_cache|micro_batch_size|tokenizer.*|checkpoint_engine\..*|profiler\..*|logprobs_mode)",
        _SPEED,
    )
    yield nothing(rf"{prefix}ref\..*", _REFERENCE)
    yield nothing(rf"{prefix}nccl_timeout", "trainer.deadline_s is the longest wait")


def _data() -> Iterator[Rule]:
    yield part(r"data\.(train_files|train_data)", "train", v.sources)
    yield part(r"data\.(val_files|val_data)", "eval", v.eval_sources, "a mapping of names to sources")
    yield part(r"data\.train_batch_size", "prompts", v.whole)
    yield part(r"data\.gen_batch_size", "gen_prompts", v.whole)
    yield part(r"data\.max_prompt_length", "max_prompt", v.whole)
    yield part(r"data\.max_response_length", "max_response", v.whole)
    yield take(r"data\.prompt_key", "data.prompt_column", v.text)
    yield part(r"data\.truncation", "truncation", v.text, "error or drop")
    yield part(r"data\.filter_overlong_prompts", "filter", v.flag, "error or drop")
    yield take(r"data\.shuffle", "data.shuffle", v.flag)
    yield take(r"data\.seed", "experiment.seed", v.whole)
    yield take(r"data\.tokenizer", "model.tokenizer", v.text)
    yield take(r"data\.val_max_samples", "data.eval_limit", v.count)
    yield Rule(r"data\.train_max_samples", does="train on the first rows only: write them to a file", off=(None, -1))
    yield lacking(r"data\.(custom_cls|sampler|datagen)\.(path|class_path)", "a dataset or sampler of your own", (None,))
    yield nothing(r"data\.(custom_cls|sampler|datagen)\..*", "there is no dataset of your own")
    yield Rule(
        r"data\.reward_fn_key",
        does="another column than data_source for the choice of a reward",
        off=("data_source", None),
    )
    yield lacking(r"data\.apply_chat_template_kwargs(\..*)?", "arguments of the chat template", (None,))
    yield lacking(r"data\.trust_remote_code", "run code of the data's repository", learns=False)
    yield lacking(r"data\.tool_config_path", "tools", (None,))
    yield nothing(
        r"data\.(val_batch_size|return_\w+|filter_overlong_prompts_workers|image_key|video_key|image_patch_size"
        r"|validation_shuffle|dataloader_num_workers|use_shm|need_tools_kwargs|force_online\w*|auto_repeat|num_loader\w*"
        r"|dataset_type|cache_dir|audio_key|mm_\w+)",
        "rows are read whole, once",
    )


def _algorithm() -> Iterator[Rule]:
    yield part(r"algorithm\.adv_estimator", "estimator", v.words(ESTIMATORS, "advantages by"))
    yield part(r"algorithm\.norm_adv_by_std_in_grpo", "std", v.flag)
    yield part(r"algorithm\.use_kl_in_reward", "kl_reward", v.flag)
    yield part(r"algorithm\.kl_ctrl\.kl_coef", "kl_reward_coef", v.number)
    yield part(r"algorithm\.kl_penalty", "kl_reward_type", v.words(KL_TYPES, "a KL penalty by"))
    yield part(r"algorithm\.kl_ctrl\.type", "kl_adapted", v.words(KL_WEIGHTS, "a KL weight by"))
    yield part(r"algorithm\.kl_ctrl\.target_kl", "kl_target", v.number, "per token")
    yield part(r"algorithm\.kl_ctrl\.horizon", "kl_horizon", v.number, "samples a step over the horizon")
    yield part(r"algorithm\.gamma", "gamma", v.number)
    yield part(r"algorithm\.lam", "gae_lambda", v.number)
    yield part(r"algorithm\.filter_groups\.enable", "dynamic_sampling", v.flag)
    yield part(r"algorithm\.filter_groups\.metric", "dynamic_metric", v.text)
    yield nothing(r"algorithm\.filter_groups\.max_num_gen_batches", "prompts are sampled until a step is full")
    yield from _weights()
    yield nothing(r"algorithm\.(workflow_type|share_reward_in_agent|algorithm_name|weight_factor_in_cpgd)", _DEFAULT)


def _weights() -> Iterator[Rule]:
    """`algorithm.rollout_correction`, and its older form `algorithm.rollout_is*`."""
    new = r"algorithm\.rollout_correction\."
    level = v.words({"token": "token", "sequence": "sequence", "null": Nothing("off")}, "importance weights of a")
    yield part(rf"{new}rollout_is", "weights_level", level)
    yield part(rf"{new}rollout_is_threshold|algorithm\.rollout_is_threshold", "weights_high", v.number)
    yield part(rf"{new}bypass_mode|{new}bypass_old_logprob_for_rollout", "bypass", v.flag)
    yield Rule(rf"{new}loss_type", does="another loss than the clipped one", off=("ppo_clip", None))
    yield part(r"algorithm\.rollout_is", "weights_on", v.flag)
    yield part(r"algorithm\.rollout_is_level", "weights_level", level)
    rule = v.words({"truncate": "truncate", "mask": "mask"}, "importance weights by")
    yield part(r"algorithm\.rollout_is_mode", "weights_rule", rule)
    yield part(r"algorithm\.rollout_is_threshold_lower", "weights_low", v.number)
    yield lacking(rf"{new}rollout_is_batch_normalize", "divide importance weights by their mean")
    yield lacking(
        rf"{new}rollout_rs|algorithm\.rollout_rs",
        "leave out samples by a divergence, beside their weights",
        (None, False, "null"),
    )
    yield lacking(
        rf"{new}rollout_token_veto_threshold|algorithm\.(rollout_is_veto_threshold|rollout_token_veto_threshold)",
        "leave out sequences for one unlikely token",
        (None, "null"),
    )
    yield lacking(r"algorithm\.use_pf_ppo", "choose samples by their rewards")
    yield nothing(rf"{new}\w+|algorithm\.(pf_ppo\..*|rollout_rs_\w+)", "no sample is left out")


def _reward() -> Iterator[Rule]:
    yield part(r"(reward\.)?custom_reward_function\.path", "reward_path", v.text)
    yield part(r"(reward\.)?custom_reward_function\.name", "reward_function", v.text)
    yield take(r"(reward\.)?custom_reward_function\.reward_kwargs\.(\w+)", r"reward.options.\2")
    yield lacking(r"reward_model\.enable", "score responses by a reward model")
    section = r"(?:reward_model|reward)\.(?:reward_kwargs\.)?"
    buffer = rf"{section}overlong_buffer(?:_cfg)?\."
    yield part(rf"{buffer}enable", "overlong_on", v.flag)
    yield part(rf"{buffer}len", "overlong_len", v.whole, "a part of rollout.max_response_tokens")
    yield part(rf"{buffer}penalty_factor", "overlong_factor", v.number)
    yield part(rf"{section}max_resp_len", "overlong_max", v.whole)
    yield nothing(rf"{buffer}.*", "reward/mean is after the cost of length")
    yield part(r"reward_model\.reward_manager|reward\.reward_manager(?:\.name)?", "reward_manager", v.text)
    yield lacking(r"reward\.reward_model\.enable", "score responses by a reward model")
    yield nothing(r"(reward_model|reward)\..*", "there is no reward model")


def _trainer() -> Iterator[Rule]:
    yield part(r"trainer\.experiment_name", "name", v.text)
    yield nothing(r"trainer\.project_name", "a run is named by experiment.name alone")
    yield take(r"trainer\.default_local_dir", "experiment.dir", v.text)
    yield part(r"trainer\.n_gpus_per_node", "gpus_per_node", v.whole, "the number of GPUs follows from the layouts")
    yield part(r"trainer\.nnodes", "nodes", v.whole, "the number of GPUs follows from the layouts")
    yield part(r"trainer\.(total_epochs|epochs)", "epochs", v.whole, "counted in steps")
    yield part(r"trainer\.total_training_steps", "steps", v.whole, "counted in steps")
    yield take(r"trainer\.save_freq", "trainer.save_freq", v.every)
    yield take(r"trainer\.test_freq", "trainer.test_freq", v.every)
    yield take(r"trainer\.val_before_train", "trainer.val_before_train", v.flag)
    yield lacking(r"trainer\.val_only", "evaluate without training")
    yield take(r"trainer\.logger", "trainer.logger", v.loggers)
    yield part(r"trainer\.resume_mode", "resume", v.text)
    yield part(r"trainer\.resume_from_path", "resume_path", v.text)
    yield take(r"trainer\.max_actor_ckpt_to_keep", "trainer.max_ckpt_to_keep", v.keep)
    yield nothing(r"trainer\.max_critic_ckpt_to_keep", "checkpoints hold policy and critic")
    yield take(r"trainer\.critic_warmup", "critic.warmup_steps", v.whole)
    yield lacking(r"trainer\.default_hdfs_dir", "copy checkpoints to HDFS", (None,), learns=False)
    yield lacking(
        r"trainer\.(rollout_data_dir|validation_data_dir)",
        "samples in a directory of your choice",
        (None,),
        learns=False,
    )
    yield nothing(
        r"trainer\.(balance_batch|device|log_val_generations|del_local_ckpt_after_load|ray_wait_\w+|use_legacy\w*|esi_\w+"
        r"|profile_steps|max_\w+_to_log|val_generations\w*|controller_nsight.*|worker_nsight.*|npu_profile.*|use_v1)",
        _DEFAULT,
    )


_REST: tuple[Rule, ...] = (
    *like_verl(r"critic\."),
    take(
        r"async_training\.partial_rollout",
        "rollout.on_update",
        lambda value: "continue" if v.flag(value) is True else "finish",
    ),
    lacking(r"async_training\.staleness_threshold", "a share of older samples; here trainer.max_staleness", (0, None)),
    lacking(r"async_training\.trigger_parameter_sync_step", "send weights after several steps", (1, None)),
    lacking(r"async_training\..*", "a choice of verl's asynchronous trainer", learns=False),
    nothing(r"(ray_init|ray_kwargs|global_profiler|transfer_queue|hydra|defaults)(\..*)?", _DEFAULT),
    take(r"dag\.custom_pipeline_fn", "algorithm.name", lambda _: Unsupported("a pipeline of your own")),
    nothing(r"dag\..*", "the order of the stages follows from what the algorithm reads"),
)

VERL = Dialect(
    name="verl",
    title="verl / siiRL",
    rules=(*actor(), *rollout(), *_data(), *_algorithm(), *_reward(), *_trainer(), *_REST),
    signs=(r"actor_rollout_ref\..*", r"data\.(train|val)_files", r"algorithm\.adv_estimator"),
    modules=("verl.", "siirl.", "recipe."),
    defaults={
        "actor_rollout_ref.rollout.n": 1,
        "actor_rollout_ref.rollout.temperature": 1.0,
        "data.max_prompt_length": 512,
        "data.max_response_length": 512,
        "data.train_batch_size": 1024,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 256,
        "actor_rollout_ref.actor.optim.lr": 1e-6,
        "actor_rollout_ref.actor.optim.weight_decay": 0.01,
        "actor_rollout_ref.actor.optim.betas": [0.9, 0.999],
        "algorithm.adv_estimator": "gae",
        "actor_rollout_ref.actor.clip_ratio": 0.2,
        "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
        "critic.optim.weight_decay": 0.01,
        "critic.optim.betas": [0.9, 0.999],
        "critic.optim.lr": 1e-5,
        "critic.cliprange_value": 0.5,
        "actor_rollout_ref.actor.kl_loss_coef": 0.001,
        "algorithm.kl_ctrl.kl_coef": 0.001,
        "algorithm.kl_penalty": "kl",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 8,
        "trainer.total_epochs": 30,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 2,
        "actor_rollout_ref.rollout.name": "vllm",
        "trainer.save_freq": -1,
        "trainer.val_before_train": True,
        "actor_rollout_ref.rollout.max_num_seqs": 1024,
    },
)
