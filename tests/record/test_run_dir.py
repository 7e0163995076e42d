"""Run directories on real file systems, against real other processes."""

import fcntl
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from run_dirs import begun

from pentad.errors import UserError
from pentad.record.machine import collect_versions
from pentad.record.metrics import MetricsLog
from pentad.record.old_runs import KEPT, NAMES
from pentad.record.run_dir import RunDir

SETTINGS = "experiment:\n  name: test\n"


def a_run(path: Path) -> None:
    with begun(path, SETTINGS) as run_dir:
        log = MetricsLog(run_dir)
        log.write(1, {"reward/mean": 0.5})
        log.close()


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_new_directory_says_what_runs(tmp_path: Path) -> None:
    with begun(tmp_path / "runs" / "a", SETTINGS) as run_dir:
        assert run_dir.path == tmp_path / "runs" / "a"
        assert run_dir.config.read_text() == SETTINGS
        versions = json.loads(run_dir.versions.read_text())
        assert versions["packages"]["torch"] == metadata.version("torch")
        assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    before = contents(tmp_path / "a")
    with pytest.raises(UserError, match=r"already holds metrics\.jsonl.*\n.*experiment\.overwrite=true"):
        begun(tmp_path / "a", "other: 1\n")
    assert contents(tmp_path / "a") == before


def test_overwrite_moves_the_old_run_aside_whole(tmp_path: Path) -> None:
    for _ in range(3):
        with begun(tmp_path / "a", SETTINGS, overwrite=True) as run_dir:
            assert not run_dir.metrics.exists()
            log = MetricsLog(run_dir)
            log.write(1, {"reward/mean": 0.5})
            log.close()
    old = [path for path in tmp_path.iterdir() if path.name.startswith("a.old-")]
    assert len(old) == 2, "two earlier runs, within one second of each other, are both kept"
    for path in old:
        assert (path / "metrics.jsonl").read_text() == '{"step": 1, "reward/mean": 0.5}\n'
        assert (path / "config.yaml").read_text() == SETTINGS


def test_overwrite_follows_a_link_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "big_disk").mkdir()
    a_run(tmp_path / "big_disk" / "a")
    (tmp_path / "a").symlink_to(tmp_path / "big_disk" / "a")
    with begun(tmp_path / "a", SETTINGS, overwrite=True):
        pass
    assert (tmp_path / "a").is_symlink()
    assert len(list((tmp_path / "big_disk").glob("a.old-*/metrics.jsonl"))) == 1


def test_a_reservation_changes_nothing(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    (tmp_path / "a" / ".lock").unlink()
    before = contents(tmp_path / "a")
    with RunDir.reserve(tmp_path / "a", SETTINGS, overwrite=True) as run_dir:
        assert run_dir.moves_aside
        with pytest.raises(UserError, match="another process"):
            RunDir.reserve(tmp_path / "a", SETTINGS, overwrite=True)
    assert contents(tmp_path / "a") == before
    with RunDir.reserve(tmp_path / "new" / "b", SETTINGS):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with RunDir.reserve(tmp_path / "new" / "b", SETTINGS) as run_dir:
        (tmp_path / "new" / "mine").write_text("put there meanwhile")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


def test_a_run_that_failed_before_its_first_step_may_be_started_again(tmp_path: Path) -> None:
    begun(tmp_path / "a", "old: 1\n").close()
    with begun(tmp_path / "a", SETTINGS) as run_dir:
        assert run_dir.config.read_text() == SETTINGS
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["config.yaml", "samples.jsonl", "report.html"])
def test_files_of_somebody_else_are_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"already holds {name}"):
        begun(tmp_path, SETTINGS)
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is, or lies below, a file"):
            begun(path, SETTINGS, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_directory_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match="cannot write to the run directory /proc/run"):
        begun("/proc/run", SETTINGS)  # not even root may


def test_too_little_space_says_how_much_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"about 1\.0 EB .* but only [\d.]+ .?B are free"):
        begun(tmp_path / "deep" / "a", SETTINGS, needed_bytes=10**18)
    assert not (tmp_path / "deep").exists()


def test_two_processes_cannot_share_a_directory(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pentad.record.run_dir import RunDir\n"
        "run_dir = RunDir.reserve(sys.argv[1], 'a: 1\\n')\n"
        "run_dir.begin()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "a")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for overwrite in (False, True):
            with pytest.raises(UserError, match="another process is writing a run"):
                begun(tmp_path / "a", SETTINGS, overwrite=overwrite)
        assert (tmp_path / "a" / "config.yaml").read_text() == "a: 1\n"
    finally:
        other.kill()
        other.communicate()
    # Killed, it holds nothing any more.
    begun(tmp_path / "a", SETTINGS).close()


def test_commit_is_that_of_the_repository_that_tracks_the_package(tmp_path: Path) -> None:
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "-q", "--verify", "HEAD"], capture_output=True, text=True
    )
    commit = collect_versions()["git_commit"]
    assert commit is None or commit.removesuffix("+changes") == git.stdout.strip()


def test_only_the_last_few_old_runs_are_kept(tmp_path: Path) -> None:
    keep = tmp_path / "a.old-20200101-000000"
    keep.mkdir()
    (keep / "thesis.tex").write_text("mine")
    (tmp_path / "a.old-notes").write_text("mine")
    for number in range(KEPT + 4):
        with begun(tmp_path / "a", f"number: {number}\n", overwrite=True) as run_dir:
            MetricsLog(run_dir).write(1, {"reward/mean": 0.5})
            assert len(run_dir.removed) == (number > KEPT)
    old = [path for path in tmp_path.glob("a.old-*/config.yaml")]
    kept = {int(path.read_text().split()[1]) for path in old}
    assert kept == {KEPT, KEPT + 1, KEPT + 2}, "the oldest went; the last is in the directory itself"
    assert (keep / "thesis.tex").exists() and (tmp_path / "a.old-notes").exists()


def test_an_old_run_that_is_written_to_is_not_removed(tmp_path: Path) -> None:
    for _ in range(KEPT + 1):
        with begun(tmp_path / "a", SETTINGS, overwrite=True) as run_dir:
            MetricsLog(run_dir).write(1, {"reward/mean": 0.5})
    oldest = min(tmp_path.glob("a.old-*"), key=lambda path: (len(path.name), path.name))
    with (oldest / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with begun(tmp_path / "a", SETTINGS, overwrite=True) as run_dir:
            assert run_dir.removed == []
    assert oldest.exists()


def test_what_is_not_a_run_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"must not move it aside: it is not the directory of a run"):
        begun(tmp_path / "other", SETTINGS, overwrite=True)
    with pytest.raises(UserError) as error:
        begun(tmp_path / "other", SETTINGS)
    assert "overwrite" not in error.value.fix
    a_run(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"it also holds notes\.txt, which no run has written"):
        begun(tmp_path / "a", SETTINGS, overwrite=True)
    (tmp_path / "a" / "notes.txt").unlink()
    (tmp_path / "a" / "model").mkdir()
    monkeypatch.chdir(tmp_path / "a" / "model")
    with pytest.raises(UserError, match="it holds the working directory"):
        begun(tmp_path / "a", SETTINGS, overwrite=True)
    with pytest.raises(UserError, match="the root of the file system"):
        RunDir.reserve("/", SETTINGS, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other"]


def test_every_file_of_a_run_is_known_as_one(tmp_path: Path) -> None:
    """A file that a run writes and `NAMES` does not have would keep the run from being moved aside."""
    files = [value for value in vars(RunDir(tmp_path / "a")).values() if isinstance(value, Path)]
    names = {file.name for file in files if file.parent == tmp_path / "a"}
    assert len(names) >= 9 and names <= NAMES
