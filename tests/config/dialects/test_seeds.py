"""The configurations of the five documents that Pentad began with: each of their keys, and what becomes of it.

They are AReaL's launch command of a mixture on five dimensions, siiRL's script of Qwen3-8B, SkyRL's Megatron section,
AReaL's adapters on a mixture, and Trinity-RFT's section for Megatron. Each key is here with its setting and value, or
its verdict.
"""

from pathlib import Path

import pytest

from pentad.config.dialects.importing import Asked, Imported, import_file

SEEDS = Path(__file__).parent / "seeds"
NOTHING = "no meaning here"

type Table = dict[str, tuple[str, object] | str]

AREAL: Table = {
    "experiment_name": ("experiment.name", "megatron-moe-gsm8k-grpo-trial-0"),
    "trial_name": ("experiment.name", "megatron-moe-gsm8k-grpo-trial-0"),
    "allocation_mode": ("allocation", "sglang:d4t4+megatron:(attn:d1p4t2c2|ffn:d1p4t1e4)"),
    "cluster.n_nodes": NOTHING,
    "cluster.n_gpus_per_node": NOTHING,
    "actor.path": ("model.path", "Qwen/Qwen3-30B-A3B"),
    "actor.megatron.use_deterministic_algorithms": ("megatron.use_deterministic_algorithms", True),
}

SIIRL: Table = {
    "algorithm.adv_estimator": ("algorithm.name", "grpo"),
    "data.train_files": ("data.train", "/home/u/data/datasets/deepscaler/train.parquet"),
    "data.val_files": ("data.eval", {"deepscaler": "/home/u/data/datasets/deepscaler/test.parquet"}),
    "data.train_batch_size": ("trainer.prompts_per_step", 128),
    "data.max_prompt_length": ("data.max_prompt_tokens", 1024),
    "data.max_response_length": ("rollout.max_response_tokens", 2048),
    "actor_rollout_ref.model.path": ("model.path", "/home/u/data/models/Qwen3-8B"),
    "actor_rollout_ref.model.enable_gradient_checkpointing": ("megatron.transformer.recompute_granularity", "full"),
    "actor_rollout_ref.actor.strategy": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "actor_rollout_ref.actor.megatron.tensor_model_parallel_size": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "actor_rollout_ref.actor.megatron.context_parallel_size": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "actor_rollout_ref.actor.megatron.sequence_parallel": NOTHING,
    "actor_rollout_ref.actor.megatron.use_distributed_optimizer": ("megatron.ddp.use_distributed_optimizer", True),
    "actor_rollout_ref.actor.megatron.param_dtype": ("trainer.dtype", "bf16"),
    "actor_rollout_ref.actor.megatron.param_offload": NOTHING,
    "actor_rollout_ref.actor.optim.lr": ("trainer.optimizer.lr", 1e-06),
    "actor_rollout_ref.actor.ppo_mini_batch_size": ("algorithm.optimizer_steps", 8),
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": ("trainer.tokens_per_microbatch", 24576),
    "actor_rollout_ref.actor.grad_clip": ("trainer.optimizer.grad_clip", 1.0),
    "actor_rollout_ref.rollout.tensor_model_parallel_size": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "actor_rollout_ref.rollout.name": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "actor_rollout_ref.rollout.gpu_memory_utilization": ("rollout.vllm.gpu_memory_utilization", 0.45),
    "actor_rollout_ref.rollout.n": ("rollout.n", 8),
    "actor_rollout_ref.rollout.prompt_length": ("data.max_prompt_tokens", 1024),
    "actor_rollout_ref.rollout.response_length": ("rollout.max_response_tokens", 2048),
    "trainer.logger": ("trainer.logger", ["console", "tensorboard"]),
    "trainer.project_name": NOTHING,
    "trainer.experiment_name": ("experiment.name", "siirl_qwen3-8b_grpo_deepscaler_megatron_experiment"),
    "trainer.n_gpus_per_node": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "trainer.nnodes": ("allocation", "vllm:d4t2|megatron:t2p4"),
    "trainer.save_freq": ("trainer.save_freq", 30),
    "trainer.test_freq": ("trainer.test_freq", 10),
    "trainer.total_epochs": "not given",
    "trainer.resume_mode": ("trainer.resume_mode", "auto"),
    "trainer.max_actor_ckpt_to_keep": ("trainer.max_ckpt_to_keep", 5),
    "trainer.default_local_dir": ("experiment.dir", "/home/u/ckpts/qwen3-8b_grpo_deepscaler_megatron_1nodes"),
    "trainer.val_before_train": ("trainer.val_before_train", True),
}

SKYRL: Table = {
    "megatron_config.policy.tensor_model_parallel_size": ("allocation", "hf:d1|megatron:d1"),
    "megatron_config.policy.pipeline_model_parallel_size": ("allocation", "hf:d1|megatron:d1"),
    "megatron_config.policy.context_parallel_size": ("allocation", "hf:d1|megatron:d1"),
    "megatron_config.policy.expert_model_parallel_size": ("allocation", "hf:d1|megatron:d1"),
    "megatron_config.policy.expert_tensor_parallel_size": NOTHING,
    "megatron_config.policy.ddp_config": "not given",
    "megatron_config.policy.optimizer_config_kwargs": "not given",
    "megatron_config.policy.transformer_config_kwargs": "not given",
}

ADAPTERS: Table = {
    "experiment_name": ("experiment.name", "lora-moe-t0"),
    "trial_name": ("experiment.name", "lora-moe-t0"),
    "seed": ("experiment.seed", 3),
    "total_train_steps": ("trainer.total_steps", 50),
    "tokenizer_path": ("model.tokenizer", "Qwen/Qwen3-30B-A3B-Base"),
    "cluster.n_nodes": NOTHING,
    "cluster.n_gpus_per_node": NOTHING,
    "cluster.fileroot": NOTHING,
    "cluster.name_resolve.type": NOTHING,
    "rollout.backend": ("allocation", "vllm:d1t2+megatron:(attn:d1p6t1c1|ffn:d1p6t1e1)"),
    "rollout.max_concurrent_rollouts": NOTHING,
    "rollout.max_head_offpolicyness": ("trainer.max_staleness", 2),
    "rollout.use_lora": ("model.lora.rank", 32),
    "gconfig.n_samples": ("rollout.n", 4),
    "gconfig.max_new_tokens": ("rollout.max_response_tokens", 512),
    "gconfig.greedy": NOTHING,
    "gconfig.temperature": ("rollout.temperature", 1.0),
    "actor.backend": ("allocation", "vllm:d1t2+megatron:(attn:d1p6t1c1|ffn:d1p6t1e1)"),
    "actor.path": ("model.path", "Qwen/Qwen3-30B-A3B-Base"),
    "actor.dtype": ("trainer.dtype", "bf16"),
    "actor.gradient_checkpointing": NOTHING,
    "actor.mb_spec.max_tokens_per_mb": ("trainer.tokens_per_microbatch", 10240),
    "actor.optimizer.type": NOTHING,
    "actor.optimizer.lr": ("trainer.optimizer.lr", 3e-06),
    "actor.optimizer.weight_decay": ("trainer.optimizer.weight_decay", 0.003),
    "actor.optimizer.beta1": ("trainer.optimizer.betas", [0.9, 0.999]),
    "actor.optimizer.beta2": ("trainer.optimizer.betas", [0.9, 0.999]),
    "actor.optimizer.eps": ("trainer.optimizer.eps", 1e-08),
    "actor.optimizer.lr_scheduler_type": ("trainer.schedule.name", "cosine"),
    "actor.optimizer.gradient_clipping": ("trainer.optimizer.grad_clip", 1.0),
    "actor.optimizer.warmup_steps_proportion": ("trainer.schedule.warmup_steps", 10),
    "actor.eps_clip": ("algorithm.clip_low", 0.4),
    "actor.temperature": ("rollout.temperature", 1.0),
    "actor.kl_ctl": ("algorithm.kl_coef", 0.0),
    "actor.ppo_n_minibatches": ("algorithm.optimizer_steps", 2),
    "actor.recompute_logprob": NOTHING,
    "actor.use_decoupled_loss": ("algorithm.correction.level", "token"),
    "actor.behave_imp_weight_cap": ("algorithm.correction.high", 5.0),
    "actor.reward_scaling": NOTHING,
    "actor.reward_bias": NOTHING,
    "actor.adv_norm.mean_level": ("algorithm.normalize_advantages", True),
    "actor.adv_norm.std_level": ("algorithm.normalize_advantages", True),
    "actor.reward_norm.mean_level": ("algorithm.name", "grpo"),
    "actor.reward_norm.std_level": ("algorithm.advantage_std", True),
    "actor.reward_norm.group_size": NOTHING,
    "actor.max_new_tokens": ("rollout.max_response_tokens", 512),
    "actor.use_lora": ("model.lora.rank", 32),
    "actor.peft_type": NOTHING,
    "actor.lora_rank": ("model.lora.rank", 32),
    "actor.lora_alpha": ("model.lora.alpha", 32.0),
    "actor.target_modules": ("model.lora.targets", "all-linear"),
    "ref.path": NOTHING,
    "ref.optimizer": NOTHING,
    "vllm.gpu_memory_utilization": ("rollout.vllm.gpu_memory_utilization", 0.9),
    "vllm.enforce_eager": ("rollout.vllm.enforce_eager", True),
    "vllm.enable_lora": NOTHING,
    "sglang.context_length": NOTHING,
    "train_dataset.batch_size": ("trainer.prompts_per_step", 16),
    "train_dataset.path": ("data.train", "data/train.jsonl"),
    "train_dataset.type": NOTHING,
    "train_dataset.max_length": ("data.max_prompt_tokens", 1024),
    "train_dataset.shuffle": ("data.shuffle", True),
    "valid_dataset.batch_size": NOTHING,
    "valid_dataset.path": ("data.eval", {"gsm8k": "hf:openai/gsm8k"}),
    "valid_dataset.type": NOTHING,
    "saver.freq_epochs": NOTHING,
    "saver.freq_steps": ("trainer.save_freq", 10),
    "saver.freq_secs": NOTHING,
    "recover.mode": ("trainer.resume_mode", "disable"),
    "evaluator.freq_epochs": NOTHING,
    "evaluator.freq_steps": ("trainer.test_freq", 5),
    "evaluator.freq_secs": NOTHING,
    "stats_logger.wandb.mode": NOTHING,
}

# The trainer's own sizes are taken; reference and critic repeat them.
_MEGATRON = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
    "param_offload",
    "grad_offload",
    "optimizer_offload",
    "use_mbridge",
    "use_dist_checkpointing",
    "dist_checkpointing_path",
    "override_transformer_config.recompute_granularity",
    "override_transformer_config.recompute_method",
    "override_transformer_config.recompute_num_layers",
)
_ACTOR = "actor_rollout_ref.actor."
TRINITY: Table = {
    **{f"{role}.megatron.{key}": NOTHING for role in ("actor_rollout_ref.ref", "critic") for key in _MEGATRON},
    "critic.strategy": NOTHING,
    _ACTOR + "strategy": ("allocation", "hf:d2|megatron:t2"),
    **{f"{_ACTOR}megatron.{key}": ("allocation", "hf:d2|megatron:t2") for key in _MEGATRON[:3]},
    **{f"{_ACTOR}megatron.{key}": NOTHING for key in _MEGATRON[3:9]},
    **{
        f"{_ACTOR}megatron.override_transformer_config.{key}": (f"megatron.transformer.{key}", value)
        for key, value in (
            ("recompute_granularity", "full"),
            ("recompute_method", "uniform"),
            ("recompute_num_layers", 1),
        )
    },
}
TABLES = {
    "areal_moe.sh": AREAL,
    "siirl.sh": SIIRL,
    "skyrl.yaml": SKYRL,
    "areal_lora.yaml": ADAPTERS,
    "trinity.yaml": TRINITY,
}


def import_seed(name: str) -> Imported:
    dialect = "trinity" if name == "trinity.yaml" else None
    return import_file(SEEDS / name, Asked(dialect, variables={"HOME": "/home/u"}))


@pytest.mark.parametrize("name", TABLES)
def test_every_key_of_a_seed_has_its_verdict(name: str) -> None:
    imported = import_seed(name)
    found = {
        row.entry.key: (row.key, row.value) if row.verdict == "taken" else row.verdict
        for row in imported.rows
        if not row.entry.default
    }
    assert found == TABLES[name]
    assert imported.stops == []


def test_what_seeds_do_not_say() -> None:
    missing = {name: set(import_seed(name).missing) for name in TABLES}
    always = {"experiment.name", "model.path", "data.train", "trainer.total_steps"}
    assert missing == {
        "areal_moe.sh": {"data.train", "trainer.total_steps"},
        "siirl.sh": {"trainer.total_steps"},  # 30 epochs of rows that are not there to be counted
        "skyrl.yaml": always,
        "areal_lora.yaml": set(),
        "trinity.yaml": always,
    }
    assert "gsm8k_grpo_megatron.yaml is not here" in import_seed("areal_moe.sh").notes[0]
    assert any("`...` stands for settings" in note for note in import_seed("trinity.yaml").notes)


def test_variables_and_arithmetic_of_the_script() -> None:
    values = import_seed("siirl.sh").values
    assert values["experiment.dir"] == Path("/home/u/ckpts/qwen3-8b_grpo_deepscaler_megatron_1nodes").as_posix()
    assert values["experiment.name"] == "siirl_qwen3-8b_grpo_deepscaler_megatron_experiment"
    two_nodes = import_file(SEEDS / "siirl.sh", Asked(variables={"HOME": "/h", "PET_NNODES": "2"})).values
    assert two_nodes["trainer.prompts_per_step"] == 256
    assert two_nodes["algorithm.optimizer_steps"] == 8
    assert two_nodes["allocation"] == "vllm:d8t2|megatron:d2t2p4"
    rows = Asked(variables={"HOME": "/h"}, rows=lambda source: 1280 if source.endswith("train.parquet") else None)
    assert import_file(SEEDS / "siirl.sh", rows).values["trainer.total_steps"] == 300


def test_another_engine_on_the_same_devices() -> None:
    engines = {
        name: import_file(SEEDS / name, Asked(variables={"HOME": "/h"}, engine="hf")).values["allocation"]
        for name in ("areal_moe.sh", "siirl.sh", "areal_lora.yaml")
    }
    assert engines == {
        "areal_moe.sh": "hf:d16+megatron:(attn:d1p4t2c2|ffn:d1p4t1e4)",
        "siirl.sh": "hf:d8|megatron:t2p4",
        "areal_lora.yaml": "hf:d2+megatron:(attn:d1p6t1c1|ffn:d1p6t1e1)",
    }
