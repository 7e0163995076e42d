"""The command line: exit codes, messages on one screen and without traceback, quick answers."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pentad.cli.main import main

ROOT = Path(__file__).parents[2]
CONFIG = """\
experiment: {name: demo}
model: {path: some/model}
data:
  train: train.jsonl
trainer:
  total_steps: 10
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def pentad(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pentad.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_config_prints_what_would_be_used(config: Path) -> None:
    result = pentad("config", config, "trainer.optimizer.lr=1e-5", "allocation=hf:d1+megatron:t2")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"lr: 1\.0e-05 +# command line", result.stdout)
    assert re.search(r"train: train\.jsonl +# run\.yaml:4", result.stdout)
    assert result.stdout.endswith("# 3 devices: hf:d1 on 0, megatron:t2 on 1-2\n")
    assert yaml.safe_load(result.stdout)["trainer"]["total_steps"] == 10


def test_config_answers_without_heavy_packages(config: Path) -> None:
    code = (
        "import sys; from pentad.cli.main import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'ray', 'transformers', 'megatron', 'numpy', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, "config", str(config)], check=True, capture_output=True, timeout=60)


# arguments after `config FILE`, part of the cause, part of the fix
REFUSED = {
    "unknown key": (["lr=1"], "lr (command line): unknown key", "trainer.optimizer.lr?"),
    "wrong type": (["rollout.n=few"], "expected a whole number >= 1, got few (text)", "the default is 8"),
    "broken rule": (["rollout.n=1"], "a group of one sample", "2 or more"),
    "wrong allocation": (["allocation=megatron:d2d8"], "d (data) is given twice", "as in megatron:d2"),
    "allocation that cannot run yet": (
        ["allocation=sglang:d1+megatron:p2"],
        "sglang is not available yet",
        "write vllm:d1",
    ),
    "weights cannot go so": (
        ["allocation=hf:d1|megatron:d1", "rollout.transport=nccl"],
        "rollout.transport=nccl needs engines on other GPUs than the trainer's",
        "rollout.transport=auto",
    ),
    "no engine": (["allocation=megatron:t2"], "no rollout engine", "hf:d2|megatron:t2 (same devices)"),
    "no engine to evaluate with": (
        ["algorithm.name=sft", "allocation=megatron:t2", "data.eval={a: b}"],
        "is evaluated by generating",
        "remove data.eval",
    ),
    "idle engine": (["algorithm.name=sft", "allocation=hf:d1+megatron:t2"], "do nothing", "write megatron:t2"),
    "critic without one": (
        ["allocation=hf:d1+megatron:d1+megatron[critic]:d1"],
        "megatron[critic]:d1 would do nothing: algorithm grpo has no critic",
        "write hf:d1+megatron:d1, or take an algorithm that reads values",
    ),
    "reference without one": (
        ["allocation=hf:d1|megatron:d1+megatron[ref]:d1"],
        "megatron[ref]:d1 would do nothing: algorithm grpo has no reference",
        "write hf:d1|megatron:d1, or set algorithm.kl_coef above 0",
    ),
    "reference of adapters": (
        ["allocation=hf:d1+megatron:d1+megatron[ref]:d1", "algorithm.kl_coef=0.1", "model.lora.rank=4"],
        "with model.lora the reference is the policy's own model with its adapters off",
        "write hf:d1+megatron:d1",
    ),
    "idle engine by default": (["algorithm.name=sft"], "allocation: hf:d1 would do nothing", "write megatron:d1"),
    "evaluation name": (["data.eval={'a:b': x}"], "'a:b' cannot name the metric", "letters, digits"),
    "Megatron field": (
        ["megatron.ddp.foo=1"],
        "megatron.ddp.foo (command line) is not among the fields that may be set here: bucket_size",
        "remove megatron.ddp.foo",
    ),
    "Megatron value": (
        ["megatron.transformer.recompute_granularity=fulll"],
        "megatron.transformer.recompute_granularity (command line): expected full or selective, got fulll",
        "give full or selective",
    ),
    "recompute of nothing": (
        ["megatron.transformer.recompute_num_layers=2"],
        "has no effect without megatron.transformer.recompute_granularity=full",
        "remove megatron.transformer.recompute_num_layers",
    ),
    "staleness on shared devices": (
        ["trainer.max_staleness=1", "allocation=hf:d1|megatron:d1"],
        "trainer.max_staleness is 1, but hf:d1|megatron:d1 has engines and trainer take turns",
        "write hf:d1+megatron:d1",
    ),
    "update of nothing": (
        ["rollout.on_update=finish"],
        "rollout.on_update (command line) is set, but trainer.max_staleness is 0",
        "set trainer.max_staleness to 1 or more",
    ),
    "bounds of no weights": (
        ["algorithm.correction.high=3.0"],
        "algorithm.correction.high (command line) is set, but there are no importance weights",
        "set algorithm.correction.level to token or sequence",
    ),
    "lower bound of truncated weights": (
        ["algorithm.correction={level: token, low: 0.1}"],
        "algorithm.correction.low (command line) is set, but algorithm.correction.rule is truncate",
        "set algorithm.correction.rule to mask",
    ),
    "weights that would all be 1": (
        ["algorithm.old_logprobs=rollout", "algorithm.correction.level=token"],
        "algorithm.correction.level (command line) is set, but algorithm.old_logprobs is rollout",
        "set algorithm.old_logprobs to trainer",
    ),
    "staleness of examples": (
        ["algorithm.name=sft", "allocation=megatron:d1", "trainer.max_staleness=1"],
        "trainer.max_staleness (command line) is set, but algorithm sft does not read it",
        "remove trainer.max_staleness",
    ),
    "unknown reward": (["reward.name=gsm8"], "reward.name=gsm8 is neither built in", "set reward.name=gsm8k"),
    "unknown option": (["--verbose"], "unrecognized arguments: --verbose", "--help"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_user_errors_exit_2_with_cause_and_fix(config: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    overrides, cause, fix = REFUSED[case]
    assert main(["config", str(config), *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert cause in captured.err
    assert fix in captured.err.partition("\n  fix: ")[2]


@pytest.mark.parametrize("case", ["unknown key", "wrong type", "broken rule", "wrong allocation"])
def test_user_errors_of_the_real_command(config: Path, case: str) -> None:
    overrides, cause, fix = REFUSED[case]
    for command in ("config", "train"):
        result = pentad(command, config, *overrides)
        assert (result.returncode, result.stdout) == (2, "")
        assert cause in result.stderr and fix in result.stderr
        assert "Traceback" not in result.stderr
        assert len(result.stderr.splitlines()) < 10


def test_allocation_for_supervised_training_needs_no_engine(config: Path) -> None:
    assert main(["config", str(config), "algorithm.name=sft", "allocation=megatron:t2"]) == 0


COMMANDS = {
    "misspelt command": (["trian", "x"], "there is no command 'trian'", "did you mean `pentad train`?"),
    "unlike any command": (["quux"], "there is no command 'quux'", "use one of train, init, config, data, "),
    "train without file": (["train"], "pentad train needs a configuration", "write `pentad train FILE.yaml`"),
    "config without file": (["config"], "no configuration is given", "pentad config FILE.yaml"),
    "keys and a file": (["config", "x.yaml", "--keys"], "reads no file", "leave the file out"),
    "metrics and a file": (["config", "x.yaml", "--metrics"], "reads no file", "leave the file out"),
    "keys and metrics": (["config", "--keys", "--metrics"], "are both given", "one of the two"),
    "markdown alone": (["config", "--markdown"], "is for --keys and --metrics only", "--keys --markdown"),
    "unknown dataset": (["data", "gsm9k"], "invalid choice: 'gsm9k'", "pentad data --help"),
    "data without target": (["data", "gsm8k"], "required: --out", "pentad data gsm8k --help"),
    "data with limit 0": (["data", "gsm8k", "--out", "x", "--limit", "0"], "--limit 0 keeps nothing", "1 or more"),
    "missing file": (["train", "no/such.yaml"], "no/such.yaml: no such file", "give an existing file"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_wrong_commands(capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, cause, fix = COMMANDS[case]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert cause in error and fix in error


def test_keys_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--keys"]) == 0
    assert "trainer.optimizer.lr  (a number >= 0; default 1.0e-06)" in capsys.readouterr().out
    assert main(["config", "--keys", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "configuration.md").read_text()
    assert main(["config", "--metrics"]) == 0
    assert "eval/<name>/accuracy\n    fraction of the prompts" in capsys.readouterr().out
    assert main(["config", "--metrics", "--markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "metrics.md").read_text(), "run `make docs`"
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code in (0, None)
    assert re.fullmatch(r"pentad \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_data_command_writes_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"question": "1 + 1?", "answer": "It is two. #### 2"}\n' * 3)
    assert main(["data", "gsm8k", "--source", str(tmp_path), "--out", str(tmp_path / "out"), "--limit", "2"]) == 0
    assert (tmp_path / "out" / "train.parquet").is_file()
    assert "train.parquet: 2 rows" in capsys.readouterr().out


def test_fault_of_ours_shows_its_first_cause_and_a_traceback_file(config: Path, tmp_path: Path) -> None:
    """A module that breaks when imported stands for a fault; it shadows one that the command needs."""
    (tmp_path / "yaml.py").write_text(
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise OSError('b') from error"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "pentad.cli", "config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.returncode == 1
    assert "fault: ZeroDivisionError: division by zero" in result.stderr
    assert "Traceback" not in result.stderr
    (traceback,) = tmp_path.glob("pentad-*.traceback.txt")
    assert str(traceback) in result.stderr
    assert "OSError: b" in traceback.read_text()


def test_interrupt_exits_130(tmp_path: Path) -> None:
    """A configuration that never ends (a pipe that nobody writes to) is interrupted."""
    pipe = tmp_path / "run.yaml"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "pentad.cli", "config", str(pipe)], stderr=subprocess.PIPE, text=True
    )
    # Opening blocks until the command opens the other end, so that the signal meets it while it reads.
    with pipe.open("w"):
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip() == "interrupted"


def test_closed_output_is_quiet(config: Path) -> None:
    command = f"'{sys.executable}' -m pentad.cli config '{config}' | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert result.stdout == "experiment:\n"
    assert result.stderr == ""


def test_errors_from_other_processes_keep_cause_and_fix() -> None:
    """Ray gives back an exception that is a `UserError` by type and carries the original as `cause`."""
    from ray.exceptions import RayTaskError

    from pentad.cli.report import user_error_in
    from pentad.errors import UserError

    original = UserError("the model is missing", "download it")
    wrapped = RayTaskError("f", "traceback", original).as_instanceof_cause()
    assert wrapped is not original
    assert user_error_in(wrapped) is original
    assert user_error_in(ValueError("x")) is None


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.name)
def test_shipped_examples_are_right(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", str(path)]) == 0, capsys.readouterr().err
