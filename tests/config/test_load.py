"""Every way in which a configuration can be wrong, what is said about it, and what a right one gives."""

from pathlib import Path

import pytest

from pentad.config.dialects.foreign import is_ours, targets, translate
from pentad.config.loading.load import load_settings
from pentad.config.loading.show import plain
from pentad.errors import UserError

BASE = """\
experiment:
  name: demo
model:
  path: some/model
data:
  train: train.jsonl
trainer:
  total_steps: 10
"""


def refused(tmp_path: Path, text: str, *overrides: str) -> UserError:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_settings(path, overrides)
    return error.value


# (lines added to BASE, overrides, part of the cause, part of the fix)
SCHEMA_FAULTS = {
    "unknown key in a section": ("  lr: 1\n", [], "trainer.lr (run.yaml:9): unknown key", "trainer.optimizer.lr"),
    "unknown key at the top": ("lr: 1\n", [], "lr (run.yaml:9): unknown key", "trainer.optimizer.lr?"),
    "misspelt key": ("rollout:\n  temprature: 1\n", [], "rollout.temprature (run.yaml:10)", "rollout.temperature?"),
    "misspelt section": ("algoritm:\n  kl_coef: 1\n", [], "algoritm.kl_coef (run.yaml:10)", "algorithm.kl_coef"),
    "key under a plain value": ("allocation:\n  d: 1\n", [], "allocation (run.yaml:9): expected text", "give text"),
    "unlike anything": ("quux: 1\n", [], "quux (run.yaml:9): unknown key", "pentad config --keys"),
    "unknown override": ("", ["rollout.nn=4"], "rollout.nn (command line): unknown key", "rollout.n?"),
    "merge key": ("<<: {a: 1}\n", [], "<<.a (run.yaml:9): unknown key", "remove it"),
    "verl": ("", ["actor_rollout_ref.actor.optim.lr=1"], "unknown key", "here it is trainer.optimizer.lr"),
    "verl layout": (
        "",
        ["actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2"],
        "tensor_model_parallel_size (command line): unknown key",
        "here it is allocation (in the trainer's layout, such as megatron:d1t2)",
    ),
    "verl transformer": (
        "",
        ["actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=full"],
        "unknown key",
        "here it is megatron.transformer.recompute_granularity",
    ),
    "AReaL determinism": (
        "",
        ["actor.megatron.use_deterministic_algorithms=true"],
        "unknown key",
        "here it is megatron.use_deterministic_algorithms",
    ),
    "siiRL sequence parallel": (
        "",
        ["actor_rollout_ref.actor.megatron.sequence_parallel=true"],
        "unknown key",
        "on whenever t is above 1",
    ),
    "TRL beta": ("", ["beta=0.1"], "beta (command line): unknown key", "here it is algorithm.kl_coef"),
    "TRL beta in a section": ("", ["algorithm.beta=0.1"], "unknown key", "here it is algorithm.kl_coef"),
    "TRL logger": ("", ["trainer.report_to=wandb"], "unknown key", "here it is trainer.logger (a list)"),
    "checkpoints": ("", ["trainer.max_actor_ckpt_to_keep=2"], "unknown key", "here it is trainer.max_ckpt_to_keep"),
    "rollout size": (
        "",
        ["actor_rollout_ref.rollout.tensor_model_parallel_size=2"],
        "unknown key",
        "such as hf:d2+megatron:t2",
    ),
    "a word for a list": ("", ["trainer.logger=wandb"], "expected a list", "write [wandb]"),
    "siiRL offload": ("", ["actor_rollout_ref.actor.megatron.param_offload=true"], "unknown key", "no such setting"),
    "AReaL": ("allocation_mode: sglang:d1\n", [], "allocation_mode (run.yaml:9)", "here it is allocation"),
    "SkyRL": ("", ["generator.n_samples_per_prompt=8"], "unknown key", "here it is rollout.n"),
    "SkyRL ddp": ("", ["trainer.policy.megatron_config.ddp_config.x=1"], "unknown key", "here it is megatron.ddp.x"),
    "text for a number": ("  prompts_per_step: many\n", [], "expected a whole number >= 1, got many (text)", "64"),
    "quoted number": ('  prompts_per_step: "8"\n', [], "got '8' (text)", "write 8 without quotes"),
    "number for text": ("", ["experiment.name=5"], "expected text", 'write "5" in quotes'),
    "yes for true": ("  export: yes\n", [], "expected true or false, got yes (text)", "write true"),
    "one for true": ("  export: 1\n", [], "expected true or false, got 1 (a whole number)", "give true or false"),
    "true for a number": ("  test_freq: true\n", [], "expected a whole number >= 0, got true (true/false)", "is 0"),
    "fraction for a whole": ("  test_freq: 2.5\n", [], "got 2.5 (a number)", "give a whole number"),
    "round fraction": ("  test_freq: 2.0\n", [], "got 2.0 (a number)", "write 2"),
    "null for a number": ("  test_freq: null\n", [], "got null", "the default is 0"),
    "too small": ("  prompts_per_step: 0\n", [], "expected a whole number >= 1, got 0", "give a whole number >= 1"),
    "too large": ("", ["rollout.top_p=1.5"], "expected a number > 0 and <= 1, got 1.5", "the default is 1.0"),
    "infinite": (
        "",
        ["trainer.optimizer.lr=.inf"],
        "trainer.optimizer.lr (command line): expected a number",
        "1.0e-06",
    ),
    "not one of": ("  dtype: fp16\n", [], "expected one of auto, fp32, bf16, got fp16", "write bf16"),
    "not one of, in a list": ("", ["trainer.logger=[tensorbord]"], "trainer.logger[0]", "write tensorboard"),
    "text for a list": ("", ["rollout.stop=END"], "expected a list (text), got END (text)", "write [END]"),
    "list too long": ("", ["trainer.optimizer.betas=[0.9, 0.95, 0.99]"], "expected a list of 2", "[0.9, 0.95]"),
    "item out of range": ("", ["trainer.optimizer.betas=[0.9, 1]"], "betas[1]", "the default is [0.9, 0.95]"),
    "list for a mapping": ("", ["data.eval=[a]"], "expected a mapping of names to sources", "the default is {}"),
    "wrong value in a mapping": ("", ["data.eval={gsm: 5}"], "data.eval.gsm (command line)", '"5" in quotes'),
    "bad name": ("", ["experiment.name=a/b"], "matching ^[A-Za-z0-9]", "give text"),
    "empty section": ("rollout:\n", [], "rollout (run.yaml:9): expected a section", "remove the line rollout:"),
    "value for a section": ("reward: gsm8k\n", [], "expected a section (keys name, options", "one by one"),
    "override without =": ("", ["rollout.n"], "override 'rollout.n' has no '='", "write rollout.n=VALUE"),
    "override without value": ("", ["rollout.n="], "has no value", "write rollout.n=null"),
    "override without key": ("", ["=3"], "'' is not a key", "section.key=VALUE"),
    "override with +": ("", ["+rollout.n=3"], "starts with '+'", "write rollout.n=3"),
    "override twice": ("", ["rollout.n=3", "rollout.n=4"], "rollout.n is given twice on the command line", "keep one"),
    "override not YAML": ("", ["rollout.stop=[a"], "the value is not valid YAML", "in quotes"),
    "override with a comment": ("", ["rollout.n=4 # four"], "would be lost as a comment", "in quotes"),
    "override and its part": (
        "",
        ["data.eval={a: b}", "data.eval.c=d"],
        "data.eval and data.eval.c are both",
        "or its parts",
    ),
    "override below a text": ("allocation: x\n", ["allocation.d=3"], "has no keys", "set allocation itself"),
    "key twice": (
        "  total_steps: 11\n",
        [],
        "trainer.total_steps (run.yaml:9) is given twice; the first is on line 8",
        "",
    ),
    "section twice": ("model:\n  path: x\n", [], "model (run.yaml:9) is given twice", "keep one of the two"),
    "key not text": ("  5: 6\n", [], "the key 5 is not text", "quotes"),
    "no such interpolation": ("", ["data.system_prompt=${nowhere.x}"], "cannot be resolved", "${section.key}"),
}


@pytest.mark.parametrize("case", SCHEMA_FAULTS)
def test_fault_is_named_with_its_fix(tmp_path: Path, case: str) -> None:
    lines, overrides, cause, fix = SCHEMA_FAULTS[case]
    error = refused(tmp_path, BASE + lines, *overrides)
    assert cause in error.cause
    assert fix in (error.fix + error.cause)


# (overrides, part of the cause, part of the fix)
RULES = {
    "clip without rl": (["algorithm.name=sft", "algorithm.clip_low=0.2"], "algorithm.clip_low (command line)", "grpo"),
    "kl without rl": (["algorithm.name=sft", "algorithm.kl_coef=0.1"], "algorithm sft does not read it", "remove"),
    "top_p without rl": (["algorithm.name=sft", "rollout.top_p=0.9", "data.eval={a: b}"], "rollout.top_p", "remove"),
    "on_failure without rl": (
        ["algorithm.name=sft", "reward.on_failure=zero", "data.eval={a: b}"],
        "reward.on_failure",
        "remove",
    ),
    "reward without eval": (["algorithm.name=sft", "reward.name=gsm8k"], "data.eval, which is empty", "data.eval"),
    "response without sft": (["data.response_column=answer"], "algorithm grpo does not read it", "sft"),
    "estimator without kl": (["algorithm.kl_estimator=k1"], "algorithm.kl_coef is 0", "remove algorithm.kl_estimator"),
    "limit without eval": (["data.eval_limit=10"], "data.eval is empty", "remove data.eval_limit"),
    "system prompt without template": (
        ["data.template=text", "data.system_prompt=Hi"],
        "data.template is text",
        "chat",
    ),
    "options without task": (["data.options={a: 1}"], "only reasoning_gym", "remove data.options"),
    "column without file": (["data.train=reasoning_gym:x", "data.prompt_column=q"], "no columns", "remove"),
    "options without function": (["reward.name=gsm8k", "reward.options={a: 1}"], "reward gsm8k", "module:function"),
    "floor of a constant": (["trainer.schedule.min_lr_ratio=0.1"], "constant schedule", "linear or cosine"),
    "group of one": (["rollout.n=1"], "rollout.n (command line) is 1: a group of one", "2 or more"),
    "long warmup": (["trainer.schedule.warmup_steps=11"], "only 10 optimizer steps", "to 10 or less"),
    "long warmup, minibatches": (
        ["trainer.schedule.warmup_steps=21", "algorithm.optimizer_steps=2"],
        "only 20 optimizer steps",
        "to 20 or less",
    ),
    "test_freq without eval": (
        ["trainer.test_freq=5"],
        "trainer.test_freq (command line) asks",
        "remove trainer.test_freq",
    ),
    "val without eval": (["trainer.val_before_train=true"], "data.eval is empty", "data.eval={test: FILE}"),
    "too many minibatches": (
        ["trainer.prompts_per_step=2", "algorithm.optimizer_steps=3"],
        "only 2 prompts to divide, trainer.prompts_per_step (command line)",
        "set algorithm.optimizer_steps to 2 or less, or trainer.prompts_per_step to 3 or more",
    ),
    "small microbatch": (["trainer.tokens_per_microbatch=1000"], "one sample may have 1280 tokens", "to 1280 or more"),
    "small microbatch, sft": (["trainer.tokens_per_microbatch=1000", "algorithm.name=sft"], "no room", "above 1024"),
    "metric name": (["data.eval={'a b': x}"], "cannot name the metric", "letters, digits"),
    "metric name with a colon": (["data.eval={'a:b': x}"], "'a:b' cannot name the metric", "letters, digits"),
    "logger twice": (["trainer.logger=[console, console]"], "names a logger twice", "once"),
    "empty stop": (['rollout.stop=[""]'], "would end every response", "remove it"),
    "layout in megatron": (
        ["megatron.transformer={tensor_model_parallel_size: 2}"],
        "megatron.transformer.tensor_model_parallel_size (command line) is settled by allocation (size t)",
        "remove megatron.transformer.tensor_model_parallel_size",
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_rule_is_named_with_its_fix(tmp_path: Path, case: str) -> None:
    overrides, cause, fix = RULES[case]
    error = refused(tmp_path, BASE, *overrides)
    assert cause in error.cause
    assert fix in error.fix


FILES = {
    "empty": ("", "is empty", "experiment.name"),
    "only a comment": ("# nothing\n", "is empty", "experiment.name"),
    "a list": ("- a\n", "run.yaml:1: the top level is a list", "section:"),
    "a word": ("hello\n", "the top level is a single value", "section:"),
    "not YAML": ("a: [1\nb: 2\n", "run.yaml:2: not valid YAML", "check quotes"),
    "tabs": ("a:\n\tb: 1\n", "run.yaml:2: not valid YAML", "spaces, not tabs"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML", "check"),
    "python object": ("a: !!python/object:os.system {}\n", "run.yaml:1: not valid YAML", "check"),
    "nested deeply": ("a: " + "[" * 3000 + "]" * 3000 + "\n", "values are nested more than 50 deep", "check"),
    "nested": ("a: " + "[" * 60 + "]" * 60 + "\n", "values are nested more than 50 deep", "check"),
    "alias of itself": ("a: &x\n  b: *x\n", "an alias refers to itself", "check"),
}


@pytest.mark.parametrize("case", FILES)
def test_file_that_is_no_configuration(tmp_path: Path, case: str) -> None:
    text, cause, fix = FILES[case]
    error = refused(tmp_path, text)
    assert cause in error.cause
    assert fix in error.fix


def test_missing_file_suggests_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(BASE)
    with pytest.raises(UserError, match="no such file") as error:
        load_settings(tmp_path / "quikstart.yaml")
    assert f"did you mean {tmp_path / 'quickstart.yaml'}?" in error.value.fix


def test_directory_and_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory"):
        load_settings(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_settings(tmp_path / "x.yaml")


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    error = refused(tmp_path, "trainer:\n  lr: 1\n  test_freq: x\n", "rollout.n")
    for part in (
        "6 problems",
        "trainer.lr (run.yaml:2)",
        "trainer.test_freq (run.yaml:3)",
        "'rollout.n' has no '='",
        "experiment.name is required",
        "model.path is required",
        "data.train is required",
    ):
        assert part in error.cause.replace("7 problems", "6 problems")
    assert "trainer.total_steps is required" in error.cause


def test_values_and_their_origins(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE + "  optimizer:\n    lr: 1e-6\n  schedule: {name: linear, warmup_steps: 2}\n")
    overrides = [
        "trainer.optimizer={weight_decay: 1e-2, betas: [0.8, 1e-1]}",
        "data.eval={gsm8k: a.jsonl, math: b.jsonl}",
        "data.system_prompt=Answer after #### please",
        "experiment.seed=7",
    ]
    loaded = load_settings(path, overrides)
    optimizer = loaded.settings.trainer.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas, optimizer.eps) == (1e-6, 1e-2, (0.8, 0.1), 1e-8)
    assert loaded.settings.data.system_prompt == "Answer after #### please"
    assert plain(loaded.settings.data.eval) == {"gsm8k": "a.jsonl", "math": "b.jsonl"}
    expected = {
        "trainer.optimizer.lr": "run.yaml:10",
        "trainer.schedule.warmup_steps": "run.yaml:11",
        "trainer.optimizer.weight_decay": "command line",
        "trainer.optimizer.eps": "default",
        "data.eval.math": "command line",
        "experiment.seed": "command line",
        "experiment.name": "run.yaml:2",
        "rollout.n": "default",
    }
    assert {key: loaded.origins[key] for key in expected} == expected


def test_override_replaces_a_mapping_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE.replace("train.jsonl\n", "train.jsonl\n  eval: {old: o.jsonl}\n"))
    loaded = load_settings(path, ["data.eval={new: n.jsonl}"])
    assert plain(loaded.settings.data.eval) == {"new": "n.jsonl"}
    assert "data.eval.old" not in loaded.origins
    both = load_settings(path, ["data.eval.new=n.jsonl"]).settings.data.eval
    assert plain(both) == {"old": "o.jsonl", "new": "n.jsonl"}


def test_interpolation_takes_the_overridden_value_and_its_type(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE + "  test_freq: ${trainer.total_steps}\n")
    overrides = ["trainer.total_steps=4", "data.eval={t: '${data.train}'}", r"data.system_prompt=a \${b}"]
    settings = load_settings(path, overrides).settings
    assert settings.trainer.test_freq == 4
    assert plain(settings.data.eval) == {"t": "train.jsonl"}
    assert settings.data.system_prompt == "a ${b}"


@pytest.mark.parametrize("text", ["no", "on", "2024-01-01", "1_000", "0x1F", "1:30", "012"])
def test_words_that_older_yaml_would_convert_stay_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE + f"allocation: {text}\n")
    assert load_settings(path).settings.allocation == text


def test_further_checks_are_reported_with_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    with pytest.raises(UserError) as error:
        load_settings(
            path, ["rollout.n=1"], checks=[lambda settings: [UserError(f"no {settings.allocation}", "change")]]
        )
    assert "2 problems" in error.value.cause and "no hf:d1|megatron:d1" in error.value.cause


def test_translations_lead_to_settings_that_exist() -> None:
    assert [target for target in targets() if not is_ours(target)] == []
    for name in (
        "gconfig.temperature",
        "generator.sampling_params.top_p",
        "trainer.algorithm.eps_clip_high",
        "actor.optimizer.eps",
        "x.transformer_config_kwargs.num_layers",
    ):
        found = translate(name)
        assert found is not None and is_ours(found.key), name
    found = translate("actor_rollout_ref.actor.megatron.dist_checkpointing_path")
    assert found is not None and found.key == "model.path" and "pentad convert" in found.note


def test_environment_of_processes(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE + "ray:\n  env: {NCCL_IB_DISABLE: 1, HF_TOKEN: null, TOKENIZERS_PARALLELISM: 'false'}\n")
    loaded = load_settings(path)
    assert loaded.settings.ray.env == {
        "NCCL_IB_DISABLE": "1",
        "HF_TOKEN": None,
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value, problem in (
        ("WANDB_API_KEY", "abc", "ray.env.WANDB_API_KEY (run.yaml:10) looks like a secret"),
        ("CUDA_VISIBLE_DEVICES", "0", "is set by Ray for each process"),
        ("A-B", "0", "cannot name an environment variable"),
    ):
        error = refused(tmp_path, BASE + f"ray:\n  env: {{{name}: '{value}'}}\n")
        assert problem in str(error)
        assert "abc" not in str(error)
