"""Runs that are refused before they start: how a bench is spoiled, what is set, and what the message must say."""

from collections.abc import Callable

from safetensors.torch import load_file, save_file
from spoiled_run import ROW, Bench


def nothing(bench: Bench) -> None: ...


def not_yaml(bench: Bench) -> None:
    bench.config.write_text("experiment: [1\n")


def config_is_missing(bench: Bench) -> None:
    bench.config.unlink()


def config_is_a_folder(bench: Bench) -> None:
    bench.config.unlink()
    bench.config.mkdir()


def config_is_not_text(bench: Bench) -> None:
    bench.config.write_bytes(b"\xff\xfe\x00model")


def unknown_architecture(bench: Bench) -> None:
    bench.model_config(model_type="mamba", architectures=["MambaForCausalLM"])


def no_weights(bench: Bench) -> None:
    (bench.model / "model.safetensors").unlink()


def no_config(bench: Bench) -> None:
    (bench.model / "config.json").unlink()


def damaged_config(bench: Bench) -> None:
    (bench.model / "config.json").write_text("{")


def damaged_weights(bench: Bench) -> None:
    (bench.model / "model.safetensors").write_bytes(b"no weights at all")


def missing_tensor(bench: Bench) -> None:
    file = bench.model / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def no_tokenizer(bench: Bench) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bench.model / name).unlink()


def empty_data(bench: Bench) -> None:
    bench.data()


def missing_column(bench: Bench) -> None:
    bench.data({"promt": "sort 4132=", "ground_truth": "1234"})


def bad_json(bench: Bench) -> None:
    bench.data(ROW, ROW, '{"prompt": "sort')


def prompt_of_a_wrong_type(bench: Bench) -> None:
    bench.data({"prompt": 4132, "ground_truth": "1234"})


def empty_prompt(bench: Bench) -> None:
    bench.data(ROW, {"prompt": "", "ground_truth": "1234"})


def no_ground_truth(bench: Bench) -> None:
    bench.data(ROW, {"prompt": "sort 4132="})


def ground_truth_is_nan(bench: Bench) -> None:
    bench.data(ROW, {"prompt": "sort 4132=", "ground_truth": float("nan")})


def ground_truth_is_a_mapping(bench: Bench) -> None:
    bench.data(ROW, {"prompt": "sort 4132=", "ground_truth": {"value": "1234"}})


def half_a_surrogate_pair(bench: Bench) -> None:
    bench.data(ROW, '{"prompt": "sort \\ud800", "ground_truth": "1"}')


def a_prompt_longer_than_the_model(bench: Bench) -> None:
    bench.data(ROW, {"prompt": "sort " + "4" * 66 + "=", "ground_truth": "1"}, ROW)


def an_evaluation_longer_than_the_model(bench: Bench) -> None:
    a_prompt_longer_than_the_model(bench)
    (bench.folder / "train.jsonl").rename(bench.folder / "eval.jsonl")
    bench.data(ROW)


def reward_without_function(bench: Bench) -> None:
    (bench.folder / "mine.py").write_text("def other(prompt, response, ground_truth):\n    return 0.0\n")


def reward_with_a_typo(bench: Bench) -> None:
    (bench.folder / "mine.py").write_text("def score(prompt, response, ground_truth)\n    return 0.0\n")


def run_exists(bench: Bench) -> None:
    (bench.folder / "run").mkdir()
    for name, text in {"metrics.jsonl": '{"step": 1, "train/loss": 1.0}\n', "config.yaml": "a: 1\n"}.items():
        (bench.folder / "run" / name).write_text(text)
    (bench.folder / "run" / "versions.json").write_text("{}\n")


def run_among_other_files(bench: Bench) -> None:
    """What is left where experiment.dir was the user's own directory."""
    run_exists(bench)
    (bench.folder / "run" / "thesis.tex").write_text("mine")


def run_is_a_file(bench: Bench) -> None:
    (bench.folder / "run").write_text("")


# What is wrong -> what is done to the bench, the overrides, what the message must say, in any order of its lines.
CASES: dict[str, tuple[Callable[[Bench], None], list[str], list[str]]] = {
    "typo in a key": (nothing, ["rollout.nn=2"], ["rollout.nn (command line)", "did you mean rollout.n?"]),
    "wrong type": (nothing, ["rollout.n=many"], ["rollout.n", "many"]),
    "override without a value": (nothing, ["rollout.n"], ["rollout.n", "="]),
    "file missing": (config_is_missing, [], ["run.yaml", "fix:"]),
    "file a folder": (config_is_a_folder, [], ["run.yaml", "fix:"]),
    "file not text": (config_is_not_text, [], ["run.yaml", "fix:"]),
    "file not YAML": (not_yaml, [], ["run.yaml:2", "fix:"]),
    "model directory missing": (nothing, ["model.path=./none"], ["model.path", "./none", "check the path"]),
    "model without config": (no_config, [], ["model", "no config.json"]),
    "model config damaged": (damaged_config, [], ["config.json", "JSON"]),
    "unknown architecture": (unknown_architecture, [], ["'mamba'", "not supported", "qwen3"]),
    "model without weights": (no_weights, [], ["no *.safetensors", "fix:"]),
    "weights damaged": (damaged_weights, [], ["model.safetensors", "again"]),
    "tensor missing": (missing_tensor, [], ["missing tensor model.norm.weight", "complete"]),
    "GGUF missing": (nothing, ["model.path=none.gguf"], ["no file none.gguf", "check the path"]),
    "hub unreachable": (nothing, ["model.path=nobody/none"], ["nobody/none", "network"]),
    "tokenizer missing": (no_tokenizer, [], ["tokenizer", "model.tokenizer"]),
    "tokenizer without chat template": (nothing, ["data.template=chat"], ["no chat template", "data.template=text"]),
    "chat template missing": (
        nothing,
        ["data.template=chat", "model.chat_template=none.jinja"],
        ["model.chat_template", "none.jinja", "check the path"],
    ),
    "data missing": (nothing, ["data.train=trian.jsonl"], ["data.train=trian.jsonl", "train.jsonl"]),
    "data of unknown kind": (nothing, ["data.train=run.yaml"], ["data.train=run.yaml", "jsonl"]),
    "data empty": (empty_data, [], ["no rows", "data.train"]),
    "column missing": (missing_column, [], ["no column 'prompt'", "data.prompt_column=promt"]),
    "bad JSON line": (bad_json, [], ["train.jsonl:3", "fix:"]),
    "prompt of a wrong type": (prompt_of_a_wrong_type, [], ["train.jsonl:1", "'prompt'", "int"]),
    "prompt empty": (empty_prompt, [], ["train.jsonl:2", "prompt"]),
    "ground truth missing": (no_ground_truth, [], ["train.jsonl:2 has no ground truth", "exact"]),
    "ground truth NaN": (ground_truth_is_nan, [], ["train.jsonl:2 has no ground truth", "exact"]),
    "ground truth a mapping": (ground_truth_is_a_mapping, [], ["train.jsonl:2", "type dict", "exact"]),
    "half a surrogate pair": (half_a_surrogate_pair, [], ["train.jsonl:2", "'prompt'", "\\ud800", "character 6"]),
    "prompt longer than the model": (
        a_prompt_longer_than_the_model,
        ["data.max_prompt_tokens=100", "trainer.tokens_per_microbatch=128"],
        ["train.jsonl:2", "64 positions", "data.max_prompt_tokens=56 and data.too_long=drop"],
    ),
    "prompts of an evaluation longer than the model": (
        an_evaluation_longer_than_the_model,
        ["data.max_prompt_tokens=100", "trainer.tokens_per_microbatch=128", "data.eval={mine: eval.jsonl}"],
        ["data.eval.mine", "eval.jsonl:2", "64 positions", "data.max_prompt_tokens=56 and data.too_long=drop"],
    ),
    "prompt too long": (nothing, ["data.max_prompt_tokens=6"], ["max_prompt_tokens=6", "data.max_prompt_tokens=7"]),
    "all prompts dropped": (
        nothing,
        ["data.max_prompt_tokens=3", "data.too_long=drop"],
        ["all prompts are longer", "data.max_prompt_tokens=7"],
    ),
    "longer than the model": (
        nothing,
        ["rollout.max_response_tokens=60", "trainer.tokens_per_microbatch=128"],
        ["64 positions", "rollout.max_response_tokens to 57"],
    ),
    "longer than a microbatch": (
        nothing,
        ["trainer.tokens_per_microbatch=20"],
        ["trainer.tokens_per_microbatch", "to 24 or more"],
    ),
    "allocation impossible": (nothing, ["allocation=hf:d1|megatron:q2"], ["q2", "^", "fix:"]),
    "allocation does not fit the model": (nothing, ["allocation=hf:d3|megatron:t3"], ["megatron:t3", "fix:"]),
    "allocation without rollout": (nothing, ["allocation=megatron:d1"], ["no rollout engine", "hf:d1|megatron:d1"]),
    "more ranks than sequences": (
        nothing,
        ["allocation=hf:d16|megatron:d16"],
        ["only 8 sequences", "trainer.prompts_per_step"],
    ),
    "ranks do not divide the sequences": (
        nothing,
        ["allocation=hf:d3|megatron:d3", "trainer.tokens_per_microbatch=24"],
        ["has 8 sequences", "in multiples of 3", "set trainer.tokens_per_microbatch to 3"],
    ),
    "reward unknown": (nothing, ["reward.name=exakt"], ["exakt", "reward.name=exact"]),
    "reward module missing": (nothing, ["reward.name=none_such:score"], ["none_such", "fix:"]),
    "reward function missing": (reward_without_function, ["reward.name=mine:score"], ["score", "mine", "other"]),
    "reward with a syntax error": (reward_with_a_typo, ["reward.name=mine:score"], ["mine.py", "1", "fix:"]),
    "run exists": (run_exists, [], ["already holds metrics.jsonl", "experiment.overwrite=true"]),
    "run among other files": (
        run_among_other_files,
        ["experiment.overwrite=true"],
        ["it also holds thesis.tex", "choose another experiment.name or experiment.dir, or move the files away"],
    ),
    "run is a file": (run_is_a_file, [], ["run is, or lies below, a file", "experiment.dir"]),
    "Megatron field unknown": (
        nothing,
        ["megatron.transformer.moe_z_loss_coef=0.1"],
        ["moe_z_loss_coef", "did you mean megatron.transformer.moe_z_loss_coeff?"],
    ),
    "Megatron DDP has no such setting": (
        nothing,
        ["megatron.ddp.overlap_grad_redcue=true"],
        ["overlap_grad_redcue", "did you mean megatron.ddp.overlap_grad_reduce?"],
    ),
    "learning rate in Megatron's words": (
        nothing,
        ["megatron.optimizer.lr=0.1"],
        [
            "megatron.optimizer.lr (command line) is settled by trainer.optimizer.lr",
            "fix: remove megatron.optimizer.lr",
        ],
    ),
    "evaluation name impossible": (nothing, ["data.eval={'a b': train.jsonl}"], ["'a b'", "letters, digits"]),
    "evaluation name with a colon": (nothing, ["data.eval={'a:b': train.jsonl}"], ["'a:b'", "letters, digits"]),
    "supervised tuning with an idle engine": (
        nothing,
        ["algorithm.name=sft"],
        ["allocation: hf:d1 would do nothing", "write megatron:d1"],
    ),
    "warmup longer than the run": (nothing, ["trainer.schedule.warmup_steps=9"], ["warmup_steps", "2 or less"]),
    "wandb not installed": (nothing, ["trainer.logger=[wandb]"], ["wandb", "not installed", "pentad[wandb]"]),
}


def own_reward(bench: Bench) -> None:
    (bench.folder / "mine.py").write_text("def length(response):\n    return float(len(response))\n")


def examples(bench: Bench) -> None:
    bench.data(*[{"prompt": "sort 4132=", "response": "1234"}] * 4)
    _without_rollouts(bench)


def pairs(bench: Bench) -> None:
    bench.data(*[{"prompt": "sort 4132=", "chosen": "1234", "rejected": "4321"}] * 4)
    _without_rollouts(bench)


def _without_rollouts(bench: Bench) -> None:
    del bench.settings["rollout"], bench.settings["reward"]
    bench.write()


_ALONE = "allocation=megatron:d1"

# Runs that are started: what is done to the bench, and the overrides.
ACCEPTED: dict[str, tuple[Callable[[Bench], None], list[str]]] = {
    "as it is": (nothing, []),
    "with an evaluation": (nothing, ["data.eval={mine: train.jsonl}", "data.eval_limit=4"]),
    "with two tensor-parallel ranks": (nothing, ["allocation=hf:d1+megatron:t2"]),
    "with a reward of one's own": (own_reward, ["reward.name=mine:length"]),
    "with adapters": (nothing, ["model.lora.rank=4"]),
    "with a critic": (nothing, ["algorithm.name=ppo"]),
    "asynchronous": (nothing, ["allocation=hf:d1+megatron:d1", "trainer.max_staleness=1"]),
    "over an earlier run": (run_exists, ["experiment.overwrite=true"]),
    "supervised": (examples, ["algorithm.name=sft", _ALONE]),
    "preferences": (pairs, ["algorithm.name=dpo", _ALONE]),
}
