"""What the settings of TRL (`GRPOConfig`, `SFTConfig`) are called here: regular expression -> (our key, note)."""

_STEPS = "counted in steps"
_BUDGET = "in tokens on one rank"

SETTINGS: dict[str, tuple[str, str]] = {
    "beta": ("algorithm.kl_coef", "0 keeps no reference model"),
    "epsilon": ("algorithm.clip_low", "and algorithm.clip_high"),
    "epsilon_high": ("algorithm.clip_high", ""),
    "scale_rewards": ("algorithm.advantage_std", ""),
    "loss_type": ("algorithm.loss_mean", "token or sequence"),
    "num_generations": ("rollout.n", ""),
    "max_completion_length": ("rollout.max_response_tokens", ""),
    "max_prompt_length": ("data.max_prompt_tokens", ""),
    "max_(seq_)?length": ("trainer.tokens_per_microbatch", _BUDGET),
    "per_device_(train|eval)_batch_size": ("trainer.tokens_per_microbatch", _BUDGET),
    "gradient_accumulation_steps": (
        "trainer.prompts_per_step",
        "microbatches follow from trainer.tokens_per_microbatch",
    ),
    "learning_rate": ("trainer.optimizer.lr", ""),
    "weight_decay": ("trainer.optimizer.weight_decay", ""),
    "max_grad_norm": ("trainer.optimizer.grad_clip", ""),
    "adam_beta[12]": ("trainer.optimizer.betas", "both in one list"),
    "adam_epsilon": ("trainer.optimizer.eps", ""),
    "lr_scheduler_type": ("trainer.schedule.name", ""),
    "warmup_steps": ("trainer.schedule.warmup_steps", ""),
    "warmup_ratio": ("trainer.schedule.warmup_steps", "in steps"),
    "max_steps": ("trainer.total_steps", ""),
    "num_train_epochs": ("trainer.total_steps", _STEPS),
    "eval_steps": ("trainer.test_freq", ""),
    "report_to": ("trainer.logger", "a list"),
    "bf16|fp16": ("trainer.dtype", "bf16 or fp32"),
    "gradient_checkpointing": ("megatron.transformer.recompute_granularity", "full"),
    "use_vllm|vllm_mode": ("allocation", "the engine"),
    "output_dir": ("experiment.dir", ""),
    "run_name": ("experiment.name", ""),
    "data_seed": ("experiment.seed", ""),
    "model_name_or_path": ("model.path", ""),
    "dataset_name": ("data.train", ""),
    "reward_funcs": ("reward.name", "module:function"),
}
# Sections that a user may have put them into.
SECTIONS = "trainer|training|algorithm|grpo|args|experiment|rollout|data|model"
