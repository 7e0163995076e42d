"""What the settings of verl, siiRL, AReaL, SkyRL and TRL are called here, for the messages about unknown keys.

Each target is one of Pentad's settings, or an empty text when there is none; the note says what differs.
"""

import re
from dataclasses import dataclass

from pentad.config.dialects import trl
from pentad.config.loading.keys import known_keys


@dataclass(frozen=True)
class Translation:
    """Our name for a setting of another system: `key` may be empty, `note` may add what to write."""

    key: str
    note: str = ""


_SIZES = {"tensor_model": "t", "pipeline_model": "p", "context": "c", "expert_model": "e", "expert_tensor": "x"}
_SIZE_NOTE = "in the trainer's layout, such as megatron:d1{letter}2"
_NOTHING = Translation("", "there is no such setting; remove it")
_BY_LAYOUT = Translation("allocation", "the number of GPUs follows from the layouts")

# Regular expressions over whole keys; the first that matches counts.
_TABLE: tuple[tuple[str, Translation], ...] = (
    # verl, siiRL
    (r"actor_rollout_ref\.model\.path", Translation("model.path")),
    (r"actor_rollout_ref\.(actor|ref)\.strategy", Translation("allocation", "the backend: megatron:...")),
    (r"actor_rollout_ref\.actor\.optim\.lr", Translation("trainer.optimizer.lr")),
    (r"actor_rollout_ref\.actor\.optim\.lr_warmup_steps", Translation("trainer.schedule.warmup_steps")),
    (r"actor_rollout_ref\.actor\.optim\.min_lr_ratio", Translation("trainer.schedule.min_lr_ratio")),
    (r"actor_rollout_ref\.actor\.optim\.(lr_scheduler_type|warmup_style)", Translation("trainer.schedule.name")),
    (r"actor_rollout_ref\.actor\.optim\.weight_decay", Translation("trainer.optimizer.weight_decay")),
    (r"actor_rollout_ref\.actor\.(grad_clip|optim\.clip_grad)", Translation("trainer.optimizer.grad_clip")),
    (r"actor_rollout_ref\.actor\.clip_ratio_high", Translation("algorithm.clip_high")),
    (r"actor_rollout_ref\.actor\.clip_ratio(_low)?", Translation("algorithm.clip_low", "and algorithm.clip_high")),
    (r"actor_rollout_ref\.actor\.(kl_loss_coef|use_kl_loss)", Translation("algorithm.kl_coef", "0 switches it off")),
    (r"actor_rollout_ref\.actor\.kl_loss_type", Translation("algorithm.kl_estimator", "low_var_kl is k3")),
    (r"actor_rollout_ref\.actor\.loss_agg_mode", Translation("algorithm.loss_mean", "token or sequence")),
    (
        r"actor_rollout_ref\.actor\.ppo_mini_batch_size\w*",
        Translation("algorithm.optimizer_steps", "the number of minibatches a step, not their size"),
    ),
    (
        r"actor_rollout_ref\.(actor|ref|rollout)\.\w*(micro_batch_size|max_token_len)\w*",
        Translation("trainer.tokens_per_microbatch", "in tokens on one rank"),
    ),
    (r"actor_rollout_ref\.rollout\.n", Translation("rollout.n")),
    (r"actor_rollout_ref\.rollout\.temperature", Translation("rollout.temperature")),
    (r"actor_rollout_ref\.rollout\.top_p", Translation("rollout.top_p")),
    (r"actor_rollout_ref\.rollout\.response_length", Translation("rollout.max_response_tokens")),
    (r"actor_rollout_ref\.rollout\.prompt_length", Translation("data.max_prompt_tokens")),
    (r"actor_rollout_ref\.rollout\.name", Translation("allocation", "the engine: hf:d1")),
    (
        r"actor_rollout_ref\.rollout\.tensor_model_parallel_size",
        Translation("allocation", "engines and their layout stand before the trainer's, such as hf:d2+megatron:t2"),
    ),
    (r"algorithm\.adv_estimator", Translation("algorithm.name")),
    (r"algorithm\.norm_adv_by_std_in_grpo", Translation("algorithm.advantage_std")),
    (r"algorithm\.kl_ctrl\.kl_coef", Translation("algorithm.kl_coef")),
    (r"data\.(train_files|train_data)", Translation("data.train")),
    (r"data\.(val_files|val_data)", Translation("data.eval", "a mapping of names to sources")),
    (r"data\.train_batch_size", Translation("trainer.prompts_per_step")),
    (r"data\.max_prompt_length", Translation("data.max_prompt_tokens")),
    (r"data\.max_response_length", Translation("rollout.max_response_tokens")),
    (r"data\.prompt_key", Translation("data.prompt_column")),
    (r"data\.(truncation|filter_overlong_prompts)", Translation("data.too_long", "error or drop")),
    (r"trainer\.(experiment_name|project_name)", Translation("experiment.name")),
    (r"trainer\.default_local_dir", Translation("experiment.dir")),
    (r"trainer\.(n_gpus_per_node|nnodes)", _BY_LAYOUT),
    (r"trainer\.(total_epochs|total_training_steps|epochs)", Translation("trainer.total_steps", "counted in steps")),
    (r"(.*\.)?(max_\w*ckpt_to_keep|save_total_limit)", Translation("trainer.max_ckpt_to_keep")),
    (r"(.*\.)?(save_steps|save_strategy|ckpt_interval)", Translation("trainer.save_freq", "in steps")),
    (r"(.*\.)?(resume_from_checkpoint|resume_from_path)", Translation("trainer.resume_mode", "auto, or a path")),
    # AReaL
    (r"experiment_name|trial_name", Translation("experiment.name")),
    (r"allocation_mode|(actor|rollout)\.backend", Translation("allocation")),
    (r"seed", Translation("experiment.seed")),
    (r"tokenizer_path", Translation("model.tokenizer")),
    (r"actor\.path", Translation("model.path")),
    (r"actor\.optimizer\.(lr|eps|weight_decay)", Translation("trainer.optimizer.\\1")),
    (r"actor\.optimizer\.gradient_clipping", Translation("trainer.optimizer.grad_clip")),
    (r"actor\.optimizer\.lr_scheduler_type", Translation("trainer.schedule.name")),
    (r"actor\.optimizer\.warmup_steps_proportion", Translation("trainer.schedule.warmup_steps", "in steps")),
    (r"actor\.eps_clip", Translation("algorithm.clip_low", "and algorithm.clip_high")),
    (r"actor\.eps_clip_higher", Translation("algorithm.clip_high")),
    (r"actor\.kl_ctl", Translation("algorithm.kl_coef")),
    (r"actor\.ppo_n_minibatches", Translation("algorithm.optimizer_steps")),
    (r"actor\.mb_spec\.max_tokens_per_mb", Translation("trainer.tokens_per_microbatch")),
    (r"gconfig\.n_samples", Translation("rollout.n")),
    (r"gconfig\.max_new_tokens", Translation("rollout.max_response_tokens")),
    (r"gconfig\.(temperature|top_p|stop)", Translation("rollout.\\1")),
    (r"train_dataset\.path", Translation("data.train")),
    (r"train_dataset\.batch_size", Translation("trainer.prompts_per_step")),
    (r"valid_dataset\.path", Translation("data.eval", "a mapping of names to sources")),
    (r"cluster\.n_(nodes|gpus_per_node)", _BY_LAYOUT),
    (r"total_train_(epochs|steps)", Translation("trainer.total_steps", "counted in steps")),
    # SkyRL
    (r"trainer\.policy\.model\.path", Translation("model.path")),
    (r"trainer\.policy\.optimizer_config\.(lr|weight_decay)", Translation("trainer.optimizer.\\1")),
    (r"trainer\.policy\.optimizer_config\.adam_betas", Translation("trainer.optimizer.betas")),
    (r"trainer\.policy\.optimizer_config\.max_grad_norm", Translation("trainer.optimizer.grad_clip")),
    (r"trainer\.policy\.optimizer_config\.num_warmup_steps", Translation("trainer.schedule.warmup_steps")),
    (r"trainer\.algorithm\.eps_clip_(low|high)", Translation("algorithm.clip_\\1")),
    (r"trainer\.algorithm\.(kl_loss_coef|use_kl_loss)", Translation("algorithm.kl_coef", "0 switches it off")),
    (r"trainer\.algorithm\.kl_estimator_type", Translation("algorithm.kl_estimator")),
    (r"trainer\.algorithm\.grpo_norm_by_std", Translation("algorithm.advantage_std")),
    (r"trainer\.algorithm\.loss_reduction", Translation("algorithm.loss_mean", "token or sequence")),
    (r"trainer\.algorithm\.advantage_estimator", Translation("algorithm.name")),
    (r"trainer\.train_batch_size", Translation("trainer.prompts_per_step")),
    (r"trainer\.micro_\w+_batch_size_per_gpu", Translation("trainer.tokens_per_microbatch", "in tokens on one rank")),
    (r"trainer\.max_prompt_length", Translation("data.max_prompt_tokens")),
    (r"trainer\.eval_interval", Translation("trainer.test_freq")),
    (r"trainer\.eval_before_train", Translation("trainer.val_before_train")),
    (r"trainer\.(run_name)", Translation("experiment.name")),
    (r"trainer\.placement\..*", _BY_LAYOUT),
    (r"generator\.n_samples_per_prompt", Translation("rollout.n")),
    (r"generator\.sampling_params\.max_generate_length", Translation("rollout.max_response_tokens")),
    (r"generator\.sampling_params\.(temperature|top_p|stop)", Translation("rollout.\\1")),
    (r"generator\.(inference_engine_tensor_parallel_size|num_inference_engines|backend)", Translation("allocation")),
    # Megatron, wherever the system keeps it
    (r".*\b(override_transformer_config|transformer_config_kwargs)\.(\w+)", Translation("megatron.transformer.\\2")),
    (r".*\b(use_deterministic_algorithms|deterministic_mode)", Translation("megatron.use_deterministic_algorithms")),
    (r".*\bddp_config\.(\w+)", Translation("megatron.ddp.\\1")),
    (r".*\boptimizer_config_kwargs\.(\w+)", Translation("megatron.optimizer.\\1")),
    (
        r".*\bvirtual_pipeline_model_parallel_size",
        Translation("allocation", _SIZE_NOTE.format(letter="p2v")),
    ),
    *(
        (rf".*\b{word}_parallel_size", Translation("allocation", _SIZE_NOTE.format(letter=letter)))
        for word, letter in _SIZES.items()
    ),
    (r".*\bsequence_parallel", Translation("", "sequence parallelism is on whenever t is above 1; remove it")),
    (
        r".*\b(param_offload|grad_offload|optimizer_offload|use_distributed_optimizer|use_mbridge|use_remove_padding"
        r"|gpu_memory_utilization)",
        _NOTHING,
    ),
    (
        r".*\b(use_dist_checkpointing|dist_checkpointing_path)",
        Translation("model.path", "a Hugging Face directory, or a checkpoint that `pentad convert` makes of one"),
    ),
)


_TRL = tuple((rf"(?:(?:{trl.SECTIONS})\.)?(?:{word})", Translation(*target)) for word, target in trl.SETTINGS.items())


def translate(name: str) -> Translation | None:
    """Our counterpart of a key of verl, siiRL, AReaL, SkyRL or TRL, or None if the key is not one of theirs."""
    for pattern, target in (*_TABLE, *_TRL):
        if match := re.fullmatch(pattern, name):
            key = match.expand(target.key)
            return None if key == name else Translation(key, target.note)
    return None


def targets() -> frozenset[str]:
    """The settings that the table points at, with the choices of a pattern left out."""
    return frozenset(target.key for _, target in (*_TABLE, *_TRL) if target.key and "\\" not in target.key)


def is_ours(name: str) -> bool:
    """Whether a translation's key is one of Pentad's settings, or lies in one of its free mappings."""
    keys = known_keys()
    return name in keys or any(key.free and name.startswith(key.name + ".") for key in keys.values())
