"""The first hour as its page tells it: its files and its commands, from an empty directory to a report.

The model of the hub is replaced by the quickstart's, since tests do without the network.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command
from doc_commands import simple_commands
from pages import DOCS, blocks

from pentad.cli.main import main
from pentad.record.machine import gpus_here

PAGE = blocks((DOCS / "first-run.md").read_text(), "docs/first-run.md")
MODEL, RUN = "Qwen/Qwen2.5-0.5B-Instruct", "runs/Qwen2.5-0.5B-Instruct-sums"


def test_the_page_leads_to_a_report(
    quickstart: Path,
    tmp_path: Path,
    pentad: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (rows,) = (block.text for block in PAGE if block.text.startswith("question,answer"))
    (reward,) = (block.text for block in PAGE if block.language == "python")
    assert len([line for line in reward.splitlines() if line and not line.startswith("#")]) <= 5
    (tmp_path / "sums.csv").write_text(rows)
    (tmp_path / "sums_reward.py").write_text(reward)
    (tmp_path / "answers.txt").write_text("7\nIt is 7\n12\nnine\n17\n8\n21\n26\n")

    commands = [words[1:] for block in PAGE if block.language == "bash" for words in simple_commands(block.text)]
    assert [words[0] for words in commands] == ["init", "data", "train", "train", "report", "runs", "reward"]
    assert MODEL in commands[0] and RUN in commands[4]
    own = {MODEL: str(quickstart / "model"), RUN: "runs/model-sums"}
    for words in commands:
        if words == ["train", "run.yaml"]:
            assert not (tmp_path / "runs").exists()
            command = pentad(*words)
            assert command.ends_within(90) == 0, command.stdout + command.stderr
        else:
            assert main([own.get(word, word) for word in words]) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    (shown,) = (block.text for block in PAGE if "wrote run.yaml" in block.text)
    if not gpus_here():
        assert [line for line in shown.splitlines() if line not in said.splitlines()] == []
    assert "All checks passed; nothing was started." in said
    (run,) = (tmp_path / "runs").iterdir()
    written = {path.name for path in run.iterdir()}
    named = {"report.html", "model", "samples.jsonl", "metrics.jsonl", "config.yaml", "versions.json", "checkpoints"}
    assert named <= written
