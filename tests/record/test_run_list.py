"""Runs in a list and side by side, from real run directories."""

from pathlib import Path

import pytest
from report_pages import Page
from run_dirs import begun

from pentad.cli.main import main
from pentad.record.metrics import MetricsLog
from pentad.record.run_dir import RunDir
from pentad.record.run_list import find_runs

SETTINGS = "experiment:\n  name: {name}\ntrainer:\n  total_steps: 4\n  optimizer:\n    lr: {lr}\n"


def made(path: Path, lr: str, steps: int, outcome: str | None) -> RunDir:
    with begun(path, SETTINGS.format(name=path.name, lr=lr)) as run_dir:
        log = MetricsLog(run_dir)
        for step in range(1, steps + 1):
            log.write(step, {"reward/mean": step / 8, "time/step": 2.0, "eval/test/accuracy": step / 4})
        log.close()
        if outcome:
            run_dir.end(outcome, 65.0, steps)
    return run_dir


def test_what_became_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "runs" / "whole", "0.1", 4, "finished")
    made(tmp_path / "runs" / "deep" / "killed", "0.1", 2, None)
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "metrics.jsonl").write_text("no json\n")
    (tmp_path / "runs" / "other").mkdir()
    with begun(tmp_path / "runs" / "new", SETTINGS.format(name="new", lr="1")):
        rows = {row.name: row for row in find_runs(tmp_path / "runs")}
        assert rows.keys() == {"whole", "killed", "torn", "new"}
        assert (rows["new"].state, rows["new"].step) == ("running", None)
    whole, killed = rows["whole"], rows["killed"]
    assert (whole.state, whole.step, whole.total, whole.reward, whole.seconds) == ("finished", 4, 4, 0.5, 65.0)
    assert whole.evals == {"test": 1.0}
    assert (killed.state, killed.step, killed.total, killed.seconds) == ("stopped", 2, 4, 4.0)
    assert rows["torn"].state.startswith("unreadable: ")
    assert main(["runs", str(tmp_path / "runs")]) == 0
    shown = capsys.readouterr().out
    assert "whole" in shown and "4/4" in shown and "1:05" in shown and "test 1" in shown


def test_two_runs_in_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "slow<b>", "0.1", 4, "finished")
    made(tmp_path / "fast", "0.5", 3, "failed")
    target = tmp_path / "page.html"
    assert main(["runs", "compare", str(tmp_path / "slow<b>"), str(tmp_path / "fast"), "--out", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "trainer.optimizer.lr" in shown and "trainer.total_steps" not in shown
    page = Page(target.read_text())
    assert page.tags.count("svg") == 3 and "b" not in page.tags and "script" not in page.tags
    assert "slow<b> and fast" in page.text
    drawing = target.read_text().partition("<svg")[2].partition("</svg>")[0]
    assert "var(--series-1)" in drawing and "var(--series-2)" in drawing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "nowhere"], "there is no directory nowhere"),
        (["runs", "compare", "a"], "needs two runs or more"),
        (["runs", "--out", "x.html"], "--out is read with compare only"),
        (["report", "nowhere"], "there is no directory nowhere"),
        (["report", ".", "--port", "1"], "--port is read with --serve only"),
        (["report", ".", "--serve", "--port", "99999"], "is no port"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
