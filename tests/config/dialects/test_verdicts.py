"""What cannot be taken: it is named with its line, and stops the import where it changes what is learnt."""

from pathlib import Path

import pytest

from pentad.config.dialects.importing import Asked, Imported, accept, import_file
from pentad.config.dialects.write import as_yaml
from pentad.errors import UserError

VERL = """\
actor_rollout_ref:
  model: {path: some/model}
  actor: {ppo_mini_batch_size: 8}
  rollout: {n: 4, name: hf, tensor_model_parallel_size: 1}
data: {train_files: train.jsonl, train_batch_size: 8}
algorithm: {adv_estimator: grpo}
trainer: {experiment_name: x, n_gpus_per_node: 1, total_training_steps: 4, test_freq: -1}
"""
AREAL = """\
experiment_name: x
allocation_mode: hf:d1|megatron:d1
actor: {path: some/model, kl_ctl: 0.0, ppo_n_minibatches: 1}
gconfig: {n_samples: 4, max_new_tokens: 8}
train_dataset: {path: train.jsonl, batch_size: 8}
total_train_steps: 4
"""


def read(tmp_path: Path, text: str, name: str = "run.yaml", **asked: object) -> Imported:
    path = tmp_path / name
    path.write_text(text)
    return import_file(path, Asked(**asked))


# added text, key, verdict, part of the reason, whether it stops the import
VERDICTS = {
    "unknown": (VERL + "nobody: {knows: 1}\n", "nobody.knows", "unknown", "no rule knows", True),
    "entropy": (
        VERL.replace("actor: {", "actor: {entropy_coeff: -0.01, "),
        "actor_rollout_ref.actor.entropy_coeff",
        "not supported here",
        "lower entropy",
        True,
    ),
    "offload": (
        VERL.replace("actor: {", "actor: {megatron: {param_offload: true}, "),
        "actor_rollout_ref.actor.megatron.param_offload",
        "not supported here",
        "memory of the CPU",
        False,
    ),
    "k1 in the loss": (
        VERL.replace("actor: {", "actor: {use_kl_loss: true, kl_loss_coef: 0.1, kl_loss_type: kl, "),
        "actor_rollout_ref.actor.kl_loss_type",
        "not supported here",
        "gradient is zero on average",
        True,
    ),
    "another mean": (
        VERL.replace("actor: {", "actor: {loss_agg_mode: seq-mean-token-sum, "),
        "actor_rollout_ref.actor.loss_agg_mode",
        "not supported here",
        "seq-mean-token-sum",
        True,
    ),
    "another estimator": (
        VERL.replace("adv_estimator: grpo", "adv_estimator: remax"),
        "algorithm.adv_estimator",
        "not supported here",
        "advantages by remax",
        True,
    ),
    "uneven minibatches": (
        VERL.replace("ppo_mini_batch_size: 8", "ppo_mini_batch_size: 3"),
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "not supported here",
        "do not divide 8",
        True,
    ),
    "each batch twice": (
        VERL.replace("actor: {", "actor: {ppo_epochs: 2, "),
        "actor_rollout_ref.actor.ppo_epochs",
        "not supported here",
        "on each batch 2 times",
        True,
    ),
    "cut prompts": (
        VERL.replace("data: {", "data: {truncation: left, "),
        "data.truncation",
        "not supported here",
        "cut long prompts",
        True,
    ),
    "no file": (
        VERL.replace("train_files: train.jsonl", "train_files: []"),
        "data.train_files",
        "not supported here",
        "train on no file",
        True,
    ),
    "a size that does not divide": (
        VERL.replace("actor: {", "actor: {megatron: {tensor_model_parallel_size: 2}, "),
        "actor_rollout_ref.actor.megatron.tensor_model_parallel_size",
        "not supported here",
        "does not divide 1 GPUs",
        True,
    ),
    "two values": (
        VERL.replace("rollout: {", "rollout: {prompt_length: 7, ").replace("data: {", "data: {max_prompt_length: 8, "),
        "data.max_prompt_length",
        "in doubt",
        "data.max_prompt_tokens is 7 by actor_rollout_ref.rollout.prompt_length (run.yaml:4)",
        True,
    ),
    "nothing is evaluated": (VERL, "trainer.test_freq", "no meaning here", "no data.eval", False),
    "a floor that a constant schedule does not read": (
        VERL.replace("actor: {", "actor: {optim: {min_lr_ratio: 0.1}, "),
        "actor_rollout_ref.actor.optim.min_lr_ratio",
        "no meaning here",
        "a constant schedule does not read it",
        False,
    ),
    "samples of older weights": (
        AREAL + "rollout: {max_head_offpolicyness: 0}\n",
        "rollout.max_head_offpolicyness",
        "no meaning here",
        "newest weights",
        False,
    ),
    "samples of older weights from shared devices": (
        AREAL + "rollout: {max_head_offpolicyness: 2}\n",
        "rollout.max_head_offpolicyness",
        "not supported here",
        "hf:d1|megatron:d1 shares them with the trainer: give allocation=ENGINE+TRAINER",
        True,
    ),
    "advantages normalised over their group": (
        AREAL.replace("actor: {", "actor: {adv_norm: {mean_level: group}, "),
        "actor.adv_norm.mean_level",
        "not supported here",
        "in another way than over all tokens of a step",
        True,
    ),
    "rewards times ten": (
        AREAL.replace("actor: {", "actor: {reward_scaling: 10.0, "),
        "actor.reward_scaling",
        "not supported here",
        "multiply rewards",
        True,
    ),
    "checkpoints by the clock": (
        AREAL + "recover: {mode: auto, freq_secs: 3600}\n",
        "recover.freq_secs",
        "not supported here",
        "give it in steps",
        False,
    ),
    "sizes without a backend": (
        AREAL.replace("hf:d1|megatron:d1", "d4t2"),
        "allocation_mode",
        "not supported here",
        "without backends",
        True,
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict(tmp_path: Path, case: str) -> None:
    text, key, verdict, why, stops = VERDICTS[case]
    imported = read(tmp_path, text)
    row = next(row for row in imported.rows if row.entry.key == key)
    assert row.verdict == verdict
    assert why in row.why
    assert (row in imported.stops) == stops
    if not stops:
        assert imported.stops == []
        return
    with pytest.raises(UserError) as error:
        imported.refuse()
    assert f"{row.entry.place}: {key}" in error.value.cause
    assert "--drop" in error.value.fix
    keys = [row.entry.key for row in imported.stops]
    accepted = accept(imported, keys)
    accepted.refuse()
    assert f"# Left out: {key} = " in as_yaml(accepted)


def test_older_allocations_name_the_engine_only(tmp_path: Path) -> None:
    for there, here in (
        ("sglang.d4p1t1+d4p1t1", "sglang:d4p1t1+megatron:d4p1t1"),
        ("vllm:d2+fsdp:d2", "vllm:d2+megatron:d2"),
        ("hf:d2|megatron:(attn:d2|ffn:e2)", "hf:d2|megatron:(attn:d2|ffn:e2)"),
    ):
        imported = read(tmp_path, AREAL.replace("hf:d1|megatron:d1", there))
        assert imported.values["allocation"] == here


def test_dropped_keys_must_be_there(tmp_path: Path) -> None:
    imported = read(tmp_path, VERL + "nobody: {knows: 1}\n")
    accept(imported, ["unknown"]).refuse()
    with pytest.raises(UserError, match="--drop nobody: there is no such key"):
        accept(imported, ["nobody"])


def test_a_default_of_theirs_that_cannot_be_had_stops_too(tmp_path: Path) -> None:
    """A group of AReaL's without a reference model: its weight of the KL penalty is 0.1 where no key gives it."""
    group = AREAL.replace("kl_ctl: 0.0", "reward_norm: {mean_level: group, std_level: group}")
    imported = read(tmp_path, group)
    row = next(row for row in imported.rows if row.entry.key == "actor.kl_ctl")
    assert row.entry.default and row in imported.stops and "divided by the deviation of their group" in row.why


def test_what_depends_on_the_environment_is_asked_for(tmp_path: Path) -> None:
    script = "python3 -m verl.trainer.main_ppo data.train_files=$DATA/train.jsonl actor_rollout_ref.model.path=$MODEL\n"
    imported = read(tmp_path, script, "run.sh", given=frozenset({"model.path"}))
    assert "give data.train=VALUE, or --var DATA=VALUE" in imported.missing["data.train"]
    assert "model.path" not in imported.missing
    known = read(tmp_path, script, "run.sh", variables={"DATA": "/data", "MODEL": "m"})
    assert known.values["data.train"] == "/data/train.jsonl"
    text = "${oc.env:DATA}/train.jsonl"
    asked = read(tmp_path, VERL.replace("train.jsonl", f'"{text}"'))
    assert "depends on ${oc.env:DATA}" in asked.missing["data.train"]
    assert read(tmp_path, VERL.replace("train.jsonl", f'"{text}"'), variables={"DATA": "/d"}).values["data.train"] == (
        "/d/train.jsonl"
    )


# name, text, part of what is said
MALFORMED = {
    "empty script": ("run.sh", "#!/bin/bash\n", "no command with settings"),
    "two commands": ("run.sh", "python -m verl.a a.b=1 c.d=2\npython -m verl.b a.b=1 c.d=2\n", "launches 2 commands"),
    "unfinished quote": ("run.sh", "python -m verl.a a.b='1 c.d=2", "no command with settings"),
    "no Python": ("run.py", "def (", "not valid Python"),
    "nothing of TRL": ("run.py", "print(1)\n", "it has no settings"),
    "another trainer of TRL": (
        "run.yaml",
        "per_device_train_batch_size: 4\nlearning_rate: 1.0e-5\n",
        "another trainer",
    ),
    "no YAML": ("run.yaml", "a: [1\n", "not valid YAML"),
    "a key twice": ("run.yaml", VERL + "trainer: {}\n", "given twice"),
    "no JSON": ("run.json", "{", "not valid YAML"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file(tmp_path: Path, case: str) -> None:
    name, text, said = MALFORMED[case]
    with pytest.raises(UserError, match=said):
        read(tmp_path, text, name)
