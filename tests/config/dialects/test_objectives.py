"""Algorithms, critics, importance weights and shaped rewards of each system: what they become, and that it loads."""

from pathlib import Path
from typing import Any

import pytest

from pentad.config.dialects.importing import Asked, import_file
from pentad.config.dialects.write import as_yaml
from pentad.config.loading.load import load_settings
from pentad.config.loading.show import value_of

VERL = """\
actor_rollout_ref:
  model: {path: m}
  actor: {ppo_mini_batch_size: 8, ACTOR}
  rollout: {n: 4, name: hf, tensor_model_parallel_size: 1}
data: {train_files: [a.jsonl, b.jsonl], train_batch_size: 16, max_response_length: 100}
trainer: {experiment_name: x, n_gpus_per_node: 1, total_training_steps: 4, TRAINER}
"""
AREAL = """\
experiment_name: x
allocation_mode: hf:d1+megatron:d1
actor: {path: m, ppo_n_minibatches: 2, ACTOR}
gconfig: {n_samples: 4, max_new_tokens: 100}
train_dataset: {path: train.jsonl, batch_size: 8}
total_train_steps: 4
"""
SKYRL = """\
trainer:
  run_name: x
  policy: {model: {path: m}}
  placement: {policy_num_gpus_per_node: 1}
  train_batch_size: 8
  policy_mini_batch_size: 8
  critic_mini_batch_size: 8
  epochs: 1
  algorithm: {ALGORITHM}
generator: {backend: hf, num_inference_engines: 1, inference_engine_tensor_parallel_size: 1, n_samples_per_prompt: 4}
data: {train_data: train.jsonl}
environment: {env_class: gsm8k}
"""
TRL = """\
num_generations: 4
model_name_or_path: m
dataset_name: train.jsonl
per_device_train_batch_size: 8
max_steps: 4
run_name: x
"""

TRINITY = """\
name: x
mode: both
algorithm: {algorithm_type: ppo, advantage_fn_args: {gamma: 1.0, lam: 0.9}, kl_loss_fn: none, repeat_times: 4}
model: {model_path: m, critic_model_path: c, max_response_tokens: 100}
cluster: {node_num: 1, gpu_per_node: 2}
buffer: {batch_size: 8, total_steps: 4, explorer_input: {taskset: {path: train.jsonl}}}
explorer: {rollout_model: {engine_type: hf, engine_num: 1}}
synchronizer: {sync_interval: 1, sync_offset: 1}
trainer: {trainer_config: {critic: {optim: {lr: 2e-5}}}}
"""

# text, settings that follow; a setting that is None is not written
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "verl: PPO by default, with its critic": (
        VERL.replace("TRAINER", "critic_warmup: 2")
        + "critic: {model: {path: c}, ppo_mini_batch_size: 8, optim: {lr: 2e-5, lr_warmup_steps: 3}}\n"
        + "algorithm: {gamma: 0.99, lam: 0.95, use_kl_in_reward: true, kl_penalty: kl, kl_ctrl: {type: adaptive, "
        + "kl_coef: 0.01, target_kl: 0.2, horizon: 1000}}\n",
        {
            "algorithm.name": "ppo",
            "algorithm.gamma": 0.99,
            "algorithm.gae_lambda": 0.95,
            "algorithm.value_clip": 0.5,
            "algorithm.kl_coef": 0.01,
            "algorithm.kl_target": 0.2,
            "algorithm.kl_gain": 0.064,  # 16 prompts of 4 samples over 1000
            "critic.model": "c",
            "critic.optimizer.lr": 2e-5,
            "critic.optimizer.betas": [0.9, 0.999],
            "critic.optimizer.weight_decay": 0.01,
            "critic.schedule.warmup_steps": 6,  # 3 steps of two optimizer steps
            "critic.warmup_steps": 2,
            "data.train": ["a.jsonl", "b.jsonl"],
        },
    ),
    "verl: DAPO": (
        VERL.replace("ACTOR", "clip_ratio_low: 0.2, clip_ratio_high: 0.28, entropy_coeff: 0.01, tis_imp_ratio_cap: 3")
        + "algorithm: {adv_estimator: grpo, gamma: 0.9, filter_groups: {enable: true, metric: acc}}\n"
        + "reward_model: {reward_manager: dapo, overlong_buffer: {enable: true, len: 25, penalty_factor: 0.5}}\n",
        {
            "algorithm.name": "grpo",
            "algorithm.dynamic_sampling": True,
            "algorithm.overlong_buffer": 0.25,
            "algorithm.overlong_penalty": 0.5,
            "algorithm.entropy_coef": 0.01,
            "algorithm.correction.level": "token",
            "algorithm.correction.rule": "truncate",
            "algorithm.correction.high": 3.0,
            "critic.optimizer.betas": None,
        },
    ),
    "verl: sequence weights": (
        VERL
        + "algorithm: {adv_estimator: rloo, rollout_correction: {rollout_is: sequence, rollout_is_threshold: 4}}\n",
        {
            "algorithm.name": "rloo",
            "algorithm.loss_mean": "token",
            "algorithm.correction.level": "sequence",
            "algorithm.correction.high": 4.0,
        },
    ),
    "verl: ratios to the engine's log-probs": (
        VERL + "algorithm: {adv_estimator: reinforce_plus_plus, rollout_correction: {bypass_mode: true, "
        "rollout_is: token}}\n",
        {
            "algorithm.name": "reinforce_pp",
            "algorithm.old_logprobs": "rollout",
            "algorithm.correction.level": None,
        },
    ),
    "verl: GSPO with verl's clip and mean": (
        VERL.replace("ACTOR", "policy_loss: {loss_mode: gspo}") + "algorithm: {adv_estimator: grpo}\n",
        {"algorithm.name": "gspo", "algorithm.clip_low": 0.2, "algorithm.loss_mean": None},
    ),
    "verl: the older form of weights": (
        VERL + "algorithm: {adv_estimator: grpo, rollout_is: true, rollout_is_threshold: 2, rollout_is_mode: mask}\n",
        {"algorithm.correction.rule": "mask", "algorithm.correction.high": 2.0, "algorithm.correction.low": 0.5},
    ),
    "AReaL: decoupled": (
        AREAL.replace(
            "ACTOR",
            "kl_ctl: 0.0, use_decoupled_loss: true, reward_scaling: 10.0, overlong_reward_penalty: true, "
            "overlong_tokens: 50, overlong_penalty_factor: 2.0, reward_norm: {mean_level: group, std_level: group}, "
            "adv_norm: {mean_level: batch}",
        )
        + "rollout: {max_head_offpolicyness: 2}\n",
        {
            "algorithm.name": "grpo",
            "trainer.max_staleness": 2,
            "algorithm.old_logprobs": None,
            "algorithm.correction.level": "token",
            "algorithm.correction.rule": "mask",
            "algorithm.correction.high": 5.0,
            "algorithm.normalize_advantages": True,
            "algorithm.reward_clip": 2.0,  # 20 of ten times the reward
            "algorithm.overlong_buffer": 0.5,
            "algorithm.overlong_penalty": 2.0,
        },
    ),
    "AReaL: samples of older weights that are not weighed": (
        AREAL.replace(
            "ACTOR", "kl_ctl: 0.0, recompute_logprob: true, reward_norm: {mean_level: group, std_level: null}"
        )
        + "rollout: {max_head_offpolicyness: 1}\n",
        {"algorithm.correction.level": "none", "algorithm.advantage_std": False, "trainer.max_staleness": 1},
    ),
    "AReaL: no group": (
        AREAL.replace("ACTOR", "kl_ctl: 0.1, adv_norm: {mean_level: batch, std_level: batch}"),
        {
            "algorithm.name": "reinforce_pp",
            "algorithm.old_logprobs": "rollout",
            "algorithm.kl_coef": 0.1,
            "algorithm.reward_clip": 20.0,
        },
    ),
    "AReaL: a critic": (
        AREAL.replace("ACTOR", "kl_ctl: 0.0, gae_lambda: 0.9")
        + "critic: {path: c, ppo_n_minibatches: 2, optimizer: {lr: 1e-5, beta2: 0.99}}\n",
        {
            "algorithm.name": "ppo",
            "algorithm.gae_lambda": 0.9,
            "algorithm.value_clip": 0.5,
            "algorithm.normalize_advantages": False,
            "critic.model": "c",
            "critic.optimizer.betas": [0.9, 0.99],
        },
    ),
    "SkyRL: its switches": (
        SKYRL.replace(
            "ALGORITHM",
            "use_tis: true, tis_imp_ratio_cap: 3.0, use_entropy_loss: true, advantage_batch_normalize: true, "
            "dynamic_sampling: {type: filter}, use_kl_loss: false, use_kl_in_reward: true, kl_loss_coef: 0.02",
        ),
        {
            "algorithm.entropy_coef": 0.01,
            "algorithm.normalize_advantages": True,
            "algorithm.dynamic_sampling": True,
            "algorithm.kl_in": "reward",
            "algorithm.kl_coef": 0.02,
            "algorithm.correction.high": 3.0,
        },
    ),
    "SkyRL: CISPO, sequence weights": (
        SKYRL.replace(
            "ALGORITHM",
            "policy_loss_type: cispo, off_policy_correction: {tis_ratio_type: sequence}, use_kl_loss: false",
        ),
        {
            "algorithm.name": "cispo",
            "algorithm.clip_low": 0.0,
            "algorithm.clip_high": 5.0,
            "algorithm.correction.level": "sequence",
            "algorithm.correction.high": 5.0,
        },
    ),
    "SkyRL: PPO": (
        SKYRL.replace("ALGORITHM", "advantage_estimator: gae, use_kl_loss: false, lambd: 0.9"),
        {
            "algorithm.name": "ppo",
            "algorithm.gae_lambda": 0.9,
            "algorithm.value_clip": None,  # 0.2 in both
            "critic.optimizer.lr": 5e-6,
        },
    ),
    "TRL: dr_grpo, several rewards": (
        TRL + "loss_type: dr_grpo\nscale_rewards: false\nmask_truncated_completions: true\n"
        "reward_funcs: ['r:a', 'r:b']\nreward_weights: [1.0, 0.5]\n",
        {
            "algorithm.name": "dr_grpo",
            "algorithm.overlong_filter": True,
            "algorithm.correction.level": None,  # its engine is not vLLM
            "reward.functions": {"a": {"name": "r:a", "weight": 1.0}, "b": {"name": "r:b", "weight": 0.5}},
        },
    ),
    "TRL: CISPO, with vLLM's weights": (
        TRL + "loss_type: cispo\nepsilon_high: 5.0\nuse_vllm: true\nvllm_importance_sampling_mode: token_truncate\n",
        {
            "algorithm.name": "cispo",
            "algorithm.clip_high": 4.0,
            "algorithm.loss_mean": "token",
            "algorithm.correction.level": "token",
            "algorithm.correction.rule": "truncate",
            "algorithm.correction.high": 3.0,
        },
    ),
    "Trinity-RFT: PPO, one step off": (
        TRINITY,
        {
            "algorithm.name": "ppo",
            "algorithm.gae_lambda": 0.9,
            "critic.model": "c",
            "critic.optimizer.lr": 2e-5,
            "trainer.max_staleness": 1,
            "algorithm.correction.level": "none",
        },
    ),
}


def read(tmp_path: Path, text: str) -> Any:
    path = tmp_path / ("run.sh" if text.startswith("python3") else "run.yaml")
    for word in ("ACTOR", "TRAINER"):
        text = text.replace(f", {word}", "")
    path.write_text(text)
    return import_file(path, Asked(rows=lambda _: 640))


@pytest.mark.parametrize("case", CASES)
def test_what_it_becomes(tmp_path: Path, case: str) -> None:
    text, expected = CASES[case]
    imported = read(tmp_path, text)
    assert [(row.entry.key, row.why) for row in imported.stops] == []
    assert {key: imported.values.get(key) for key in expected} == expected
    written = tmp_path / "written.yaml"
    written.write_text(as_yaml(imported))
    loaded = load_settings(written, []).settings
    for key, value in expected.items():
        if value is not None and key != "reward.functions":
            found = value_of(loaded, key)
            assert (list(found) if isinstance(found, tuple) else found) == value


# text, key, part of the reason
REFUSED = {
    "groups by a shaped reward": (
        VERL + "algorithm: {adv_estimator: grpo, filter_groups: {enable: true, metric: seq_reward}}\n"
        "reward_model: {overlong_buffer: {enable: true, len: 25}}\n",
        "algorithm.filter_groups.enable",
        "by the reward before the cost of length",
    ),
    "a cost up to another length": (
        VERL + "algorithm: {adv_estimator: grpo}\n"
        "reward_model: {reward_kwargs: {overlong_buffer_cfg: {enable: true, len: 25}, max_resp_len: 90}}\n",
        "reward_model.reward_kwargs.overlong_buffer_cfg.enable",
        "up to 90 tokens",
    ),
    "normalised weights": (
        VERL + "algorithm: {adv_estimator: grpo, rollout_correction: {rollout_is: token, "
        "rollout_is_batch_normalize: true}}\n",
        "algorithm.rollout_correction.rollout_is_batch_normalize",
        "divide importance weights by their mean",
    ),
    "a critic with other minibatches": (
        VERL + "critic: {model: {path: c}, ppo_mini_batch_size: 4}\n",
        "critic.ppo_mini_batch_size",
        "4 optimizer steps of the critic a step, and 2 of the policy",
    ),
    "an unknown key of a critic": (
        VERL + "critic: {model: {path: c}, forward_noise: 4}\n",
        "critic.forward_noise",
        "a setting of critics that has no counterpart",
    ),
    "rewards that are scaled and not divided": (
        AREAL.replace("ACTOR", "kl_ctl: 0.0, reward_scaling: 10.0, reward_norm: {mean_level: group, std_level: null}"),
        "actor.reward_scaling",
        "no deviation divides afterwards",
    ),
    "weights of the mean ratio": (
        AREAL.replace("ACTOR", "kl_ctl: 0.0, use_decoupled_loss: true, behave_imp_weight_mode: sequence_mask"),
        "actor.behave_imp_weight_mode",
        "sequence_mask",
    ),
    "weights without a bound": (
        AREAL.replace("ACTOR", "kl_ctl: 0.0, use_decoupled_loss: true, behave_imp_weight_cap: null"),
        "actor.use_decoupled_loss",
        "without a bound",
    ),
    "weights that another file describes": (
        "python3 -m areal.launcher.ray train.py --config absent.yaml actor.use_decoupled_loss=true "
        "allocation_mode=hf:d1+megatron:d1\n",
        "actor.use_decoupled_loss",
        "settings that are not here",
    ),
    "smaller batches": (
        AREAL.replace("ACTOR", "kl_ctl: 0.0, dynamic_sampling: true"),
        "actor.dynamic_sampling",
        "train on a smaller batch",
    ),
    "a sum over another length": (
        SKYRL.replace("ALGORITHM", "loss_reduction: seq_mean_token_sum_norm, max_seq_len: 4096"),
        "trainer.algorithm.loss_reduction",
        "max_seq_len = 4096; here over rollout.max_response_tokens = 1024",
    ),
    "copies of other groups": (
        SKYRL.replace("ALGORITHM", "dynamic_sampling: {type: replace}"),
        "trainer.algorithm.dynamic_sampling.type",
        "put copies of other groups",
    ),
    "rewards and weights of another number": (
        TRL + "reward_funcs: ['r:a', 'r:b']\nreward_weights: [1.0]\n",
        "reward_weights",
        "2 rewards with weights [1.0]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_difference_is_named(tmp_path: Path, case: str) -> None:
    text, key, why = REFUSED[case]
    imported = read(tmp_path, text)
    row = next(row for row in imported.stops if row.entry.key == key)
    assert row.verdict == "not supported here" and why in row.why
