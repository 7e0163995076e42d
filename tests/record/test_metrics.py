"""Metrics in real files, on a full disk too."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from run_dirs import begun
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pentad.errors import UserError
from pentad.record.jsonl import read_jsonl
from pentad.record.metric_table import METRICS, describe
from pentad.record.metrics import MetricsLog, Timer, accuracy_name, merge, open_sinks
from pentad.record.run_dir import RunDir
from pentad.record.samples import SampleLog
from pentad.record.tensorboard import TensorBoard


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    with begun(tmp_path / "run", "a: 1\n") as run_dir:
        yield run_dir


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def strict_rows(path: Path) -> list[dict[str, object]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_write_is_a_line_at_once(run_dir: RunDir) -> None:
    log = MetricsLog(run_dir)
    assert not run_dir.metrics.exists()
    log.write(0, {"eval/gsm8k/accuracy": 0.25})
    log.write(1, {"reward/mean": 0.5, "data/samples_consumed": 64})
    log.write(1, {"time/step": 2.0})
    assert strict_rows(run_dir.metrics) == [
        {"step": 0, "eval/gsm8k/accuracy": 0.25},
        {"step": 1, "reward/mean": 0.5, "data/samples_consumed": 64},
        {"step": 1, "time/step": 2.0},
    ]
    log.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_null(run_dir: RunDir, value: float) -> None:
    log = MetricsLog(run_dir)
    log.write(1, {"train/grad_norm": value, "train/loss": 1.5})
    assert strict_rows(run_dir.metrics) == [{"step": 1, "train/grad_norm": None, "train/loss": 1.5}]


@pytest.mark.parametrize("name", ["loss", "Train/loss", "train/", "/loss", "train//loss", "train/lo ss", "step"])
def test_names_without_a_group_are_refused(run_dir: RunDir, name: str) -> None:
    with pytest.raises(ValueError, match="group/name"):
        MetricsLog(run_dir).write(1, {name: 1.0})
    assert not run_dir.metrics.exists()


def test_nothing_is_written_twice_or_backwards(run_dir: RunDir) -> None:
    log = MetricsLog(run_dir)
    log.write(3, {"train/loss": 1.0})
    with pytest.raises(ValueError, match="step 3 written twice: train/loss"):
        log.write(3, {"train/loss": 2.0})
    with pytest.raises(ValueError, match="step 2 after those of step 3"):
        log.write(2, {"train/kl": 2.0})
    with pytest.raises(ValueError, match="train/kl is no number"):
        log.write(4, {"train/kl": "high"})  # ty: ignore[invalid-argument-type]
    assert len(strict_rows(run_dir.metrics)) == 1


def test_merge_refuses_a_name_of_two_phases() -> None:
    assert merge({"train/loss": 1.0}, {"time/step": 2.0}) == {"train/loss": 1.0, "time/step": 2.0}
    with pytest.raises(ValueError, match="reported twice: train/loss"):
        merge({"train/loss": 1.0}, {"train/loss": 1.0})


def test_all_agreed_names_can_be_written(run_dir: RunDir) -> None:
    names = [name.replace("<name>", "gsm8k").replace("<k>", "1").replace("<part>", "mine") for name in METRICS]
    MetricsLog(run_dir).write(1, dict.fromkeys(names, 1.0))
    assert all(describe(name) for name in names)
    assert "reward of 1" in describe("eval/gsm8k/accuracy") and describe("mine/own") == ""
    assert all(metric.meaning and metric.average for metric in METRICS.values())


def test_eval_names() -> None:
    assert accuracy_name("gsm8k-test") == "eval/gsm8k-test/accuracy"
    for name in ("", "my eval", "a/b", "a:b", "-x"):
        with pytest.raises(ValueError, match="cannot be part of a metric's name"):
            accuracy_name(name)


def test_timer_adds_up_phases_and_begins_again() -> None:
    now = iter([0.0, 1.0, 3.0, 4.0, 4.5, 6.0, 10.0])
    timer = Timer(clock=lambda: next(now))
    with timer.phase("rollout"):
        pass
    with timer.phase("rollout"):
        pass
    assert timer.metrics() == {"time/rollout": 2.5, "time/step": 6.0}
    assert timer.metrics() == {"time/step": 4.0}


def test_timer_refuses_nested_phases_and_survives_errors() -> None:
    timer = Timer()
    message = "'train' begins within phase 'rollout'"
    with pytest.raises(RuntimeError, match=message), timer.phase("rollout"), timer.phase("train"):
        pass
    with timer.phase("train"):
        pass
    assert set(timer.metrics()) == {"time/rollout", "time/train", "time/step"}


def test_a_disk_that_stays_full_is_a_user_error_that_names_the_directory(run_dir: RunDir) -> None:
    run_dir.metrics.symlink_to("/dev/full")
    log = MetricsLog(run_dir)
    log.write(1, {"train/loss": 1.0})
    with pytest.raises(UserError, match=f"disk is full.*{run_dir.path}"):
        log.close()


def test_what_a_full_disk_does_not_take_is_written_when_there_is_space(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with begun(small_disk / "run", "a: 1\n") as run_dir:
        log, filler = MetricsLog(run_dir), small_disk / "filler"
        log.write(0, {"train/loss": 1.0})
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        for step in range(1, 300):
            log.write(step, {"train/loss": 1.0 / step, "train/kl": 0.25})
        assert len(caplog.records) == 1 and "kept in memory" in caplog.text
        before = strict_rows(run_dir.metrics)
        assert [row["step"] for row in before] == list(range(len(before))) and len(before) < 300
        filler.unlink()
        log.write(300, {"train/loss": 0.0})
        log.close()
        assert [row["step"] for row in strict_rows(run_dir.metrics)] == list(range(301))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_tensorboard_on_a_full_disk_loses_events_and_says_so(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with begun(small_disk / "run", "a: 1\n") as run_dir:
        sink = TensorBoard(run_dir)
        for step in range(2000):
            sink.write(step, {f"train/metric_{i}": 1.0 for i in range(20)})
    assert "TensorBoard has no events of step" in caplog.text


def test_sinks_write_the_file_tensorboard_and_the_console(run_dir: RunDir) -> None:
    shown: list[tuple[int, Mapping[str, float]]] = []

    class Console:
        def write(self, step: int, metrics: Mapping[str, float]) -> None:
            shown.append((step, metrics))

        def close(self) -> None:
            shown.append((-1, {}))

    sinks = open_sinks(run_dir, ["console", "tensorboard"], console=Console(), name="test", settings={})
    sinks.write(1, {"train/loss": 0.5})
    sinks.write(2, {"train/loss": 0.25})
    sinks.close()
    assert [row["train/loss"] for row in strict_rows(run_dir.metrics)] == [0.5, 0.25]
    assert shown == [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.25}), (-1, {})]
    events = EventAccumulator(str(run_dir.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]


def test_without_loggers_only_the_file_is_written(run_dir: RunDir) -> None:
    sinks = open_sinks(run_dir, [], console=None, name="test", settings={})
    sinks.write(1, {"train/loss": 0.5})
    sinks.close()
    assert run_dir.metrics.exists() and not run_dir.tensorboard.exists()


@pytest.mark.parametrize("package", ["wandb", "mlflow", "swanlab"])
def test_logger_that_is_not_installed(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what an import of a package that is not there sees
    with pytest.raises(UserError, match=rf"not installed\n.*pentad\[{package}\]"):
        open_sinks(run_dir, [package], console=None, name="test", settings={})


def test_wandb_offline(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sinks = open_sinks(run_dir, ["wandb"], console=None, name="test", settings={"a": 1})
    sinks.write(1, {"train/loss": 0.5})
    sinks.close()
    assert list(run_dir.path.glob("wandb/offline-run-*/*.wandb"))


def test_mlflow_in_files(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics and settings are there under their names, and a run that goes on is the same run."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    many = {f"train/m{number}": number / 7 for number in range(250)}
    for step in (1, 2):
        sinks = open_sinks(
            run_dir, ["mlflow"], console=None, name="test", settings={"trainer": {"lr": 0.1, "on": True}}
        )
        sinks.write(step, {"train/loss": step / 2, "eval/x/pass_at_4": 0.5, **many})
        sinks.close()
    client = MlflowClient((run_dir.path / "mlruns").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "pentad"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("test", "FINISHED")
    assert run.data.params == {"trainer.lr": "0.1", "trainer.on": "true"}
    assert run.data.metrics["train/m249"] == pytest.approx(249 / 7)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 1.0)]
    assert run_dir.mlflow_id.read_text().strip() == run.info.run_id


def test_mlflow_whose_server_is_not_there(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"mlflow does not start.*\n.*MLFLOW_TRACKING_URI"):
        open_sinks(run_dir, ["mlflow"], console=None, name="test", settings={})


def test_swanlab_offline(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    sinks = open_sinks(run_dir, ["swanlab"], console=None, name="test", settings={"a": {"b": 1}})
    sinks.write(1, {"train/loss": 0.5, "eval/x/pass_at_4": 0.25})
    sinks.write(1, {"eval/x/accuracy": 0.25})
    sinks.close()
    files = [path for path in (run_dir.path / "swanlog").rglob("*") if path.is_file()]
    assert any(b"train/loss" in path.read_bytes() for path in files)


def test_samples_keep_any_text_and_a_handful_a_step(run_dir: RunDir) -> None:
    log = SampleLog(run_dir, per_step=2)
    text = 'né\n"<b>" \ud800 \x00 \u2028'
    for step in (1, 2):
        for k in range(5):
            log.write(step, text, f"answer {k}", math.nan if k else 1.0)
        log.write(step, text, "evaluated", 0.0, source="gsm8k")
    log.close()
    rows = list(read_jsonl(run_dir.samples, notes := []))
    assert [(row["step"], row["response"], row["reward"]) for row in rows] == [
        (step, response, reward)
        for step in (1, 2)
        for response, reward in (("answer 0", 1.0), ("answer 1", None), ("evaluated", 0.0))
    ]
    assert rows[0]["prompt"] == text
    assert notes == []


def test_a_line_that_a_killed_process_left_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "tra')
    notes: list[str] = []
    assert [row["step"] for row in read_jsonl(path, notes)] == [1]
    assert notes == ["The last line of metrics.jsonl is unfinished and was left out."]
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not valid JSON"):
        list(read_jsonl(path, []))
