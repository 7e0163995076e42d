"""The quickstart as a user runs it: prepare, supervised training, reinforcement learning. Two minutes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Command
from quickstart import REPOSITORY
from transformers import AutoModelForCausalLM, AutoTokenizer

from pentad.record.metric_table import find_metric

EXAMPLES = REPOSITORY / "examples"
SFT_STEPS, GRPO_STEPS = 250, 24


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl that belong to a training step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "time/step" in row]


def accuracies(run: Path) -> list[float]:
    """Of every evaluation, in order."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["eval/sort/accuracy"] for row in rows if "eval/sort/accuracy" in row]


@torch.no_grad()
def solved_greedily(model_directory: Path, problems: Path) -> float:
    """How many problems transformers answers right with the exported model, as a fraction."""
    rows = [json.loads(line) for line in problems.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    tokens = torch.tensor([tokenizer(row["prompt"])["input_ids"] for row in rows])  # all are of one length
    answers = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=8)
    texts = tokenizer.batch_decode(answers[:, tokens.shape[1] :], skip_special_tokens=True)
    return sum(text == row["ground_truth"] for text, row in zip(texts, rows, strict=True)) / len(rows)


@pytest.mark.slow
def test_quickstart(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    tuned, learnt = tmp_path / "tuned", tmp_path / "learnt"
    tune(quickstart, pentad, tuned)
    rows = read_metrics(tuned)
    assert [row["step"] for row in rows] == list(range(1, SFT_STEPS + 1))
    assert rows[-1]["train/loss"] < 0.3 * rows[0]["train/loss"]
    assert all(row["data/samples_consumed"] == 128 for row in rows)

    command = pentad(
        "train",
        str(EXAMPLES / "quickstart.yaml"),
        f"experiment.dir={learnt}",
        f"model.path={tuned / 'model'}",
        f"data.train={quickstart / 'train.jsonl'}",
        f"data.eval={{sort: {quickstart / 'eval.jsonl'}}}",
        f"trainer.total_steps={GRPO_STEPS}",
        cold=True,
    )
    assert command.ends_within(150) == 0, command.stderr
    check_output(command)
    rows = read_metrics(learnt)
    assert [row["step"] for row in rows] == list(range(1, GRPO_STEPS + 1))
    rewards = [row["reward/mean"] for row in rows]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    for row in rows:
        assert row["data/samples_generated"] == row["data/samples_consumed"] == 256
        assert row["rollout/logprob_diff_max"] <= 1e-4
        assert row["reward/failures"] == 0
    before, after = accuracies(learnt)
    assert after > before + 0.2
    assert solved_greedily(learnt / "model", quickstart / "eval.jsonl") == pytest.approx(after, abs=0.02)
    assert "Reward" in (learnt / "report.html").read_text()
    for run in (tuned, learnt):
        check_table(run)


def tune(quickstart: Path, pentad: Callable[..., Command], run: Path) -> None:
    command = pentad(
        "train",
        str(EXAMPLES / "quickstart" / "sft.yaml"),
        f"experiment.dir={run}",
        f"model.path={quickstart / 'model'}",
        f"data.train={quickstart / 'sft.jsonl'}",
        f"trainer.total_steps={SFT_STEPS}",
        cold=True,
    )
    assert command.ends_within(150) == 0, command.stderr
    check_output(command)


@pytest.mark.long
def test_quickstart_with_adapters(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    """GRPO by LoRA learns as much with less than a twentieth of the parameters trained."""
    tuned, run = tmp_path / "tuned", tmp_path / "adapted"
    tune(quickstart, pentad, tuned)
    command = pentad(
        "train",
        str(EXAMPLES / "quickstart.yaml"),
        f"experiment.dir={run}",
        f"model.path={tuned / 'model'}",
        f"data.train={quickstart / 'train.jsonl'}",
        f"data.eval={{sort: {quickstart / 'eval.jsonl'}}}",
        f"trainer.total_steps={GRPO_STEPS}",
        "trainer.optimizer.lr=1.0e-2",
        "trainer.val_before_train=false",
        "trainer.save_freq=0",
        "model.lora.rank=2",
    )
    assert command.ends_within(150) == 0, command.stderr
    assert "what is trained has 4.88% of the model's number of parameters" in command.stdout
    rewards = [row["reward/mean"] for row in read_metrics(run)]
    assert sum(rewards[:3]) / 3 < 0.35
    assert sum(rewards[-3:]) / 3 > 0.8
    check_table(run)


def check_table(run: Path) -> None:
    """Every metric that the run has written has a row in the table of metrics."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row} - {"step"}
    assert sorted(name for name in names if find_metric(name) is None) == []


def check_output(command: Command) -> None:
    """The user sees the run and nothing of the packages that it is built on."""
    assert command.stderr == ""
    for noise in ("Warning", "CUDA", "Writing model", "Apex", "Traceback", "INFO", "WARNING"):
        assert noise not in command.stdout
