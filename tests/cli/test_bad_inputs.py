"""What a user may get wrong: refused with exit code 2 and one screen that names cause and fix, or counted."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from command import Command
from safetensors.torch import load_file, save_file

from pentad.cli.main import main


@dataclass
class Bench:
    """A run that would work, on copies of the quickstart's files, to be spoiled."""

    folder: Path
    settings: dict = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    def data(self, *rows: object) -> None:
        """Train on these rows; text is taken for a line as it is."""
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (self.folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def model_config(self, **values: object) -> None:
        file = self.model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))


@pytest.fixture
def bench(quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(quickstart / "model", tmp_path / "model")
    shutil.copy(quickstart / "train.jsonl", tmp_path)
    settings = {
        "experiment": {"name": "bad", "dir": "run"},
        "allocation": "hf:d1|megatron:d1",
        "model": {"path": "model"},
        "data": {"train": "train.jsonl", "template": "text", "max_prompt_tokens": 16},
        "reward": {"name": "exact"},
        "rollout": {"n": 2, "max_response_tokens": 8},
        "trainer": {"total_steps": 2, "prompts_per_step": 4, "tokens_per_microbatch": 64, "logger": ["console"]},
    }
    made = Bench(tmp_path, settings)
    made.write()
    return made


ROW = {"prompt": "sort 4132=", "ground_truth": "1234"}


def nothing(bench: Bench) -> None:
    """The override does it."""


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
    (bench.folder / "run" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')


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
        ["megatron.optimizer.lr is settled by trainer.optimizer.lr", "fix: remove megatron.optimizer.lr"],
    ),
    "evaluation name impossible": (nothing, ["data.eval={'a b': train.jsonl}"], ["'a b'", "without spaces"]),
    "warmup longer than the run": (nothing, ["trainer.schedule.warmup_steps=9"], ["warmup_steps", "2 or less"]),
    "wandb not installed": (nothing, ["trainer.logger=[wandb]"], ["wandb", "not installed", "pentad[wandb]"]),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(bench: Bench, capfd: pytest.CaptureFixture[str], name: str) -> None:
    spoil, overrides, texts = CASES[name]
    if name == "wandb not installed" and _installed("wandb"):
        pytest.skip("wandb is installed")
    spoil(bench)
    code = main(["train", str(bench.config), *overrides])
    said = capfd.readouterr()
    check_refusal(code, said.err, *texts)
    assert "Warning" not in said.out
    assert (bench.folder / "run").exists() == name.startswith("run "), "a refused run leaves nothing"


def check_refusal(code: int, said: str, *texts: str) -> None:
    """Exit code 2, cause and fix on one screen, and nothing else."""
    assert code == 2, said
    assert said.startswith("error: ")
    assert "fix: " in said
    assert len(said.splitlines()) <= 24
    assert "Traceback" not in said
    for text in texts:
        assert text in said, f"{text!r} is not in: {said}"


def test_run_locked_by_another(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "run").mkdir()
    with (bench.folder / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = main(["train", str(bench.config)])
    check_refusal(code, capfd.readouterr().err, "another process", "experiment.name")


def test_the_suggested_length_works(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """With the fix for prompts longer than the model, the next thing wrong is something else."""
    a_prompt_longer_than_the_model(bench)
    given = ["data.max_prompt_tokens=56", "data.too_long=drop", "ray.address=127.0.0.1:9"]
    code = main(["train", str(bench.config), *given])
    check_refusal(code, capfd.readouterr().err, "ray.address")


REFUSED_LATE = {
    "logger": (nothing, ["trainer.logger=[wandb]"]),
    "lengths": (nothing, ["rollout.max_response_tokens=60", "trainer.tokens_per_microbatch=128"]),
    "tokenizer": (no_tokenizer, []),
    "cluster": (nothing, ["ray.address=127.0.0.1:9"]),
}


@pytest.mark.parametrize("name", REFUSED_LATE)
def test_a_refused_run_leaves_the_old_one_where_it_is(bench: Bench, pentad: Callable[..., Command], name: str) -> None:
    if name == "logger" and _installed("wandb"):
        pytest.skip("wandb is installed")
    spoil, overrides = REFUSED_LATE[name]
    spoil(bench)
    run_exists(bench)
    before = sorted(bench.folder.rglob("*"))
    command = pentad("train", str(bench.config), "experiment.overwrite=true", *overrides)
    check_refusal(command.ends_within(60), command.stderr)
    after = sorted(bench.folder.rglob("*"))
    assert [path for path in after if path.name not in ("stdout.txt", "stderr.txt")] == before
    assert (bench.folder / "run" / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 1.0}\n'


@pytest.mark.parametrize("setting", ["path", "tokenizer"])
def test_a_run_does_not_move_its_own_model_away(bench: Bench, capfd: pytest.CaptureFixture[str], setting: str) -> None:
    run_exists(bench)
    shutil.copytree(bench.model, bench.folder / "run" / "model")
    overrides = [f"model.{setting}=run/model", "experiment.overwrite=true"]
    code = main(["train", str(bench.config), *overrides])
    check_refusal(code, capfd.readouterr().err, f"model.{setting}", "lies in the run directory", "experiment.name")
    assert not list(bench.folder.glob("run.old-*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_too_small(bench: Bench, small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["train", str(bench.config), f"experiment.dir={small_disk}/run"])
    check_refusal(code, capfd.readouterr().err, "are free there", "experiment.dir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_directory_not_writable(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "run").mkdir(mode=0o500)
    code = main(["train", str(bench.config)])
    check_refusal(code, capfd.readouterr().err, "cannot write", "experiment.dir")


def test_ray_unreachable(bench: Bench, pentad: Callable[..., Command]) -> None:
    command = pentad("train", str(bench.config), "ray.address=127.0.0.1:9")
    check_refusal(command.ends_within(60), command.stderr, "ray.address", "127.0.0.1:9", "unset ray.address")


def test_unknown_key_by_the_command(bench: Bench, pentad: Callable[..., Command]) -> None:
    """The process itself is silent about everything but the error."""
    command = pentad("train", str(bench.config), "rollout.nn=2")
    check_refusal(command.ends_within(60), command.stderr, "rollout.nn")
    assert command.stdout == ""


def test_missing_tensor_by_the_command(bench: Bench, pentad: Callable[..., Command]) -> None:
    """The slow imports have been made by then, and have said nothing."""
    missing_tensor(bench)
    command = pentad("train", str(bench.config))
    check_refusal(command.ends_within(60), command.stderr, "missing tensor model.norm.weight")
    assert command.stdout == "bad: reading model and data\n"


def test_rewards_that_fail_are_counted(bench: Bench, pentad: Callable[..., Command]) -> None:
    """Raising, hanging, returning NaN and dying each cost one sample; the run goes on, and says so."""
    (bench.folder / "mine.py").write_text(
        """
import os, time

def score(prompt, response, ground_truth):
    if prompt == "sort 0000=":
        raise ValueError("no digits")
    if prompt == "sort 1111=":
        time.sleep(600)
    if prompt == "sort 2222=":
        return float("nan")
    if prompt == "sort 3333=":
        os._exit(3)
    print("scoring", prompt[5:9])
    return 1.0
"""
    )
    bench.data(*({"prompt": f"sort {digit * 4}=", "ground_truth": "0"} for digit in ("0", "1", "2", "3", "4", "5" * 4)))
    command = pentad(
        "train",
        str(bench.config),
        "reward.name=mine:score",
        "reward.timeout_s=2",  # a busy machine may take a good part of a second for a call
        "trainer.prompts_per_step=5",
        "data.max_prompt_tokens=10",
        "data.too_long=drop",
        "rollout.top_p=0.9",
    )
    assert command.ends_within(180) == 0, command.stderr
    assert command.stderr == ""
    assert "4 timeouts, 4 crashes, 4 exceptions, 4 bad_values" in command.stdout
    lines = command.stdout.splitlines()
    told = [line for line in lines if line.startswith("reward failed (")]
    assert len(told) == 4, "the first of each kind is told"
    assert lines.index(told[-1]) < next(i for i, line in enumerate(lines) if line.startswith("step 1/2"))
    assert any(line.startswith("reward failed (exception): ValueError: no digits (") for line in told)
    assert [line for line in lines if "reward failures 8" in line and line.startswith("step ")]
    rows = [json.loads(line) for line in (bench.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward/failures"] for row in rows] == [8, 8]
    assert [row["data/samples_consumed"] for row in rows] == [10, 10]
    assert (bench.folder / "run" / "model" / "model.safetensors").exists()
    assert (bench.folder / "run" / "rewards.log").read_text() == "scoring 4444\n" * 4
    assert "scoring" not in command.stdout
    notes = [line for line in lines if line.startswith("note: ")]
    assert [note.split(":")[1].split(" = ")[0] for note in notes] == [" rollout.top_p", " data.train"]
    assert "1 of 6 prompts are longer" in notes[1]


@pytest.mark.parametrize(
    ("body", "overrides", "texts"),
    [
        ("raise ValueError('two' + chr(10) + 'lines')", [], ["all 8 calls", "ValueError: two lines", "reward.name"]),
        ("return None", ["trainer.val_before_train=true", "data.eval={mine: train.jsonl}"], ["all 3 calls", "None"]),
        ("import time; time.sleep(600)", ["reward.timeout_s=0.3"], ["reward.timeout_s (now 0.3)", "longer than"]),
    ],
)
def test_a_reward_that_never_works_ends_the_run(
    bench: Bench, pentad: Callable[..., Command], body: str, overrides: list[str], texts: list[str]
) -> None:
    (bench.folder / "mine.py").write_text(f"def score(prompt, response, ground_truth):\n    {body}\n")
    bench.data(*[ROW] * 3)
    command = pentad("train", str(bench.config), "reward.name=mine:score", *overrides)
    check_refusal(command.ends_within(120), command.stderr, *texts)
    assert command.stdout.count("reward failed (") == 1
    assert "step 1/2" not in command.stdout
    # What was wrong is put right, and the run started again.
    (bench.folder / "mine.py").write_text("def score(prompt, response, ground_truth):\n    return 1.0\n")
    assert pentad("train", str(bench.config), "reward.name=mine:score", *overrides).ends_within(120) == 0


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
