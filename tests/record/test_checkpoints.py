"""Checkpoints on the disk: complete or not there, whenever the writer is killed and whatever happens to the files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pentad.errors import UserError
from pentad.record.checkpoints import Checkpoint, Checkpoints, find_checkpoint, sound
from pentad.record.manifest import FORMAT, DamagedError, Manifest, differences, read_manifest, record_file


def write(checkpoints: Checkpoints, step: int, **metrics: float) -> Checkpoint:
    partial = checkpoints.open(step)
    (partial / "policy").mkdir()
    for name in ("policy/rank-00000.safetensors", "driver.pt"):
        (partial / name).write_bytes(os.urandom(100_000))
    files = tuple(record_file(partial, name) for name in ("policy/rank-00000.safetensors", "driver.pt"))
    manifest = Manifest(step=step, version=step, roles=("policy",), files=files, metrics=metrics)
    return checkpoints.complete(partial, manifest)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def test_the_newest_is_found_and_reads_back(checkpoints):
    assert checkpoints.newest_sound(pytest.fail) is None
    written = [write(checkpoints, step, **{"reward/mean": step / 10}) for step in (5, 10)]
    assert list(checkpoints.steps()) == [5, 10]
    found = checkpoints.newest_sound(pytest.fail)
    assert found == written[1] and found.manifest.metrics == {"reward/mean": 1.0}


def cut_short(path: Path) -> None:
    file = path / "policy" / "rank-00000.safetensors"
    os.truncate(file, 99_999)


def flip_a_bit(path: Path) -> None:
    file = path / "policy" / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[50_000] ^= 1
    file.write_bytes(data)


def lose_a_file(path: Path) -> None:
    (path / "driver.pt").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def change_the_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"step": 10', '"step": 11'))


def cut_the_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 80)


FAULTS = {
    cut_short: "rank-00000.safetensors has 99999 bytes, not 100000",
    flip_a_bit: "rank-00000.safetensors is not what was written",
    lose_a_file: "driver.pt is missing",
    lose_the_manifest: "it has no manifest.json",
    change_the_manifest: "manifest.json was changed",
    cut_the_manifest: "manifest.json cannot be read",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_one_is_named_and_the_one_before_it_taken(checkpoints, fault):
    write(checkpoints, 5)
    damaged = write(checkpoints, 10).path
    fault(damaged)
    with pytest.raises(DamagedError, match=FAULTS[fault]):
        sound(damaged)
    told: list[str] = []
    found = checkpoints.newest_sound(told.append)
    assert found is not None and found.manifest.step == 5
    assert len(told) == 1 and str(damaged) in told[0] and FAULTS[fault] in told[0]
    assert damaged.exists(), "nothing is removed unasked"


def test_none_sound_is_an_error(checkpoints):
    lose_a_file(write(checkpoints, 5).path)
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        checkpoints.newest_sound(lambda text: None)


def test_a_later_format_is_refused_and_not_passed_over(checkpoints):
    write(checkpoints, 5)
    file = write(checkpoints, 10).path / "manifest.json"
    content = json.loads(file.read_text())
    content["manifest"]["format"] = FORMAT + 1
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"has format {FORMAT + 1}; .* reads up to {FORMAT}"):
        checkpoints.newest_sound(pytest.fail)


def test_pruning_keeps_the_newest_and_the_best(checkpoints):
    for step, reward in enumerate([0.1, 0.9, 0.3, 0.4], start=1):
        write(checkpoints, step, **{"eval/a/reward": reward})
    checkpoints.prune(2, lambda metrics: metrics.get("eval/a/reward"))
    assert list(checkpoints.steps()) == [2, 3, 4]
    checkpoints.prune(2)
    assert list(checkpoints.steps()) == [3, 4]
    checkpoints.prune(0)
    assert list(checkpoints.steps()) == [4]
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step-00000004"]


def test_later_ones_are_set_aside_and_not_taken(checkpoints):
    for step in (5, 10, 15):
        write(checkpoints, step)
    for again in (1, 2):
        assert [path.name for path in checkpoints.set_aside_after(10)] == [f"step-00000015.old-{again}"]
        assert checkpoints.newest_sound(pytest.fail).manifest.step == 10
        write(checkpoints, 15)


def test_a_path_may_be_a_run_its_checkpoints_or_one_of_them(checkpoints):
    write(checkpoints, 5)
    write(checkpoints, 10)
    for path, step in {
        checkpoints.directory.parent: 10,
        checkpoints.directory: 10,
        checkpoints.directory / "step-00000005": 5,
    }.items():
        assert find_checkpoint(path, pytest.fail).manifest.step == step
    with pytest.raises(UserError, match="there is no checkpoint"):
        find_checkpoint(checkpoints.directory / "step-00000006", pytest.fail)
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(checkpoints.directory / "step-00000005" / "policy", pytest.fail)


_WRITER = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from pentad.record.checkpoints import Checkpoints
from record.test_checkpoints import write
checkpoints = Checkpoints(Path({directory!r}))
checkpoints.clean()
step = max(checkpoints.steps(), default=0)
print("ready", flush=True)
while True:
    step += 1
    write(checkpoints, step)
    print("written", flush=True)
    checkpoints.prune(2)
"""


def test_a_killed_writer_leaves_only_complete_checkpoints(checkpoints):
    """Thirty kills at moments spread over writing, renaming and pruning; the newest step never goes back."""
    code = _WRITER.format(tests=str(Path(__file__).parents[1]), directory=str(checkpoints.directory))
    newest = 0
    for kill in range(30):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            for _ in range(kill % 4):
                assert writer.stdout.readline() == b"written\n"
            time.sleep(0.003 * (kill % 7))
            writer.send_signal(signal.SIGKILL)
        for path in checkpoints.steps().values():
            sound(path)
        found = checkpoints.newest_sound(pytest.fail)
        assert (found.manifest.step if found else 0) >= newest
        newest = found.manifest.step if found else 0
    assert newest > 0
    checkpoints.clean()
    assert all(path.name.startswith("step-") for path in checkpoints.directory.iterdir())


def test_differences_are_named_by_setting():
    then = {"trainer": {"total_steps": 5, "optimizer": {"lr": 0.1}}, "allocation": "hf:d1"}
    now = {"trainer": {"total_steps": 9, "optimizer": {"lr": 0.1}, "new": None}, "allocation": "hf:d1"}
    assert list(differences(then, now)) == ["trainer.total_steps: 5 -> 9"]
    assert list(differences({"a": 1}, {})) == ["a: 1 -> not set"]


def test_what_is_read_is_what_was_written(checkpoints):
    written = write(checkpoints, 3, **{"train/loss": 0.25})
    assert read_manifest(written.path) == written.manifest
