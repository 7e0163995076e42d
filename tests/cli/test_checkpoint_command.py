"""`pentad checkpoint`: what is listed, found damaged and removed."""

import os
from pathlib import Path

import pytest

from pentad.cli.main import main
from pentad.record.checkpoints import Checkpoints
from pentad.record.manifest import Manifest, record_file

STEPS = (5, 10, 15)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with three checkpoints."""
    checkpoints = Checkpoints(tmp_path / "mine" / "checkpoints")
    for step in STEPS:
        partial = checkpoints.open(step)
        (partial / "driver.pt").write_bytes(os.urandom(1000))
        files, settings = (record_file(partial, "driver.pt"),), {"allocation": "megatron:t2"}
        metrics = {"reward/mean": step / 100}
        manifest = Manifest(step, step, roles=("policy",), files=files, settings=settings, metrics=metrics)
        checkpoints.complete(partial, manifest)
    return tmp_path / "mine"


def left(run: Path) -> list[int]:
    return list(Checkpoints(run / "checkpoints").steps())


def test_ls_has_a_line_for_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-00000010" / "driver.pt").unlink()
    assert main(["checkpoint", "ls", str(run)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "size", "reward", "allocation", "path"]
    assert [line.split()[0] for line in lines if "megatron:t2" in line] == ["5", "15"]
    assert lines[0].split()[3:5] == ["0.050", "megatron:t2"]
    assert "driver.pt is missing" in lines[1]


def test_verify_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert capsys.readouterr().out.count(": sound, 1 files, ") == 3
    damaged = run / "checkpoints" / "step-00000010"
    (damaged / "driver.pt").write_bytes(bytes(1000))
    assert main(["checkpoint", "verify", str(run)]) == 1
    said = capsys.readouterr().out
    assert said.count(": sound, ") == 2 and "driver.pt is not what was written" in said
    assert main(["checkpoint", "verify", str(damaged)]) == 1


def test_prune_keeps_the_newest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "prune", str(run), "--keep", "0"]) == 2 and left(run) == list(STEPS)
    assert main(["checkpoint", "prune", str(run), "--keep", "1"]) == 0
    assert left(run) == [15] and capsys.readouterr().out.endswith("1 kept, 2 removed\n")


def test_prune_leaves_all_where_the_newest_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-00000015" / "driver.pt").write_bytes(bytes(1000))
    assert main(["checkpoint", "prune", str(run), "--keep", "1"]) == 2
    assert left(run) == list(STEPS) and "driver.pt is not what was written" in capsys.readouterr().err


def test_a_run_without_checkpoints_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "ls", str(tmp_path)]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err
