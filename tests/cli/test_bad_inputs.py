"""What a user may get wrong: refused with exit code 2 and one screen that names cause and fix, or counted."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_runs import a_prompt_longer_than_the_model, missing_tensor, no_tokenizer, nothing, run_exists
from command import Command
from spoiled_run import Bench, bench, check_refusal

from pentad.cli.main import main

__all__ = ["bench"]


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
def test_a_refused_run_leaves_the_old_one_where_it_is(
    bench: Bench, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    if name == "logger" and _installed("wandb"):
        pytest.skip("wandb is installed")
    spoil, overrides = REFUSED_LATE[name]
    spoil(bench)
    run_exists(bench)
    before = sorted(bench.folder.rglob("*"))
    code = main(["train", str(bench.config), "experiment.overwrite=true", *overrides])
    check_refusal(code, capfd.readouterr().err)
    assert sorted(bench.folder.rglob("*")) == before
    assert (bench.folder / "run" / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 1.0}\n'


@pytest.mark.parametrize("overrides", [[], ["experiment.overwrite=true"]])
@pytest.mark.parametrize("place", [".", "data"])
def test_the_users_own_directories_are_not_moved(
    bench: Bench, capfd: pytest.CaptureFixture[str], place: str, overrides: list[str]
) -> None:
    """With the project or the data as the run directory, overwriting is neither advised nor done."""
    (bench.folder / "data").mkdir()
    (bench.folder / "train.jsonl").rename(bench.folder / "data" / "train.jsonl")
    for folder in (bench.folder, bench.folder / "data"):
        (folder / "report.html").write_text("mine")
    before = sorted(bench.folder.rglob("*"))
    source = "data.train=data/train.jsonl"
    assert main(["train", str(bench.config), f"experiment.dir={place}", source, *overrides]) == 2
    said = capfd.readouterr().err
    assert "already holds" in said and "experiment.overwrite=true to move" not in said
    assert sorted(bench.folder.rglob("*")) == before
    assert not list(bench.folder.parent.glob(f"{bench.folder.name}.old-*"))


def test_a_run_does_not_write_among_the_data(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "data").mkdir()
    (bench.folder / "train.jsonl").rename(bench.folder / "data" / "train.jsonl")
    for place in ("data", "data/run"):
        code = main(["train", str(bench.config), f"experiment.dir={place}", "data.train=data"])
        check_refusal(code, capfd.readouterr().err, "lies in data.train", "experiment.dir")
        assert [path.name for path in (bench.folder / "data").iterdir()] == ["train.jsonl"]


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


def test_ray_unreachable(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["train", str(bench.config), "ray.address=127.0.0.1:9"])
    check_refusal(code, capfd.readouterr().err, "ray.address", "127.0.0.1:9", "unset ray.address")


def test_unknown_key_by_the_command(bench: Bench, pentad: Callable[..., Command]) -> None:
    """The process itself is silent about everything but the error."""
    command = pentad("train", str(bench.config), "rollout.nn=2", cold=True)
    check_refusal(command.ends_within(60), command.stderr, "rollout.nn")
    assert command.stdout == ""


def test_missing_tensor_by_the_command(bench: Bench, pentad: Callable[..., Command]) -> None:
    """The slow imports have been made by then, and have said nothing."""
    missing_tensor(bench)
    command = pentad("train", str(bench.config), cold=True)
    check_refusal(command.ends_within(60), command.stderr, "missing tensor model.norm.weight")
    assert command.stdout.splitlines()[0] == "bad: reading model and data"
    assert command.stdout.splitlines()[1:] == ["data.train: prompts from 'prompt', ground truth from 'ground_truth'"]


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
