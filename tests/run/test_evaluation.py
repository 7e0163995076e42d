"""Evaluations of a run and of `pentad eval`, by the real command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from quickstart import REPOSITORY
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS = 4


def read(run: Path) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["step"], {}).update(row)
    return rows


@torch.no_grad()
def likelihood_loss(model_directory: Path, rows: list[dict[str, str]]) -> float:
    """The negative log-likelihood of the responses, nats a token, as transformers computes it."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        total -= float(logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum())
        count += len(answer)
    return total / count


def test_supervised_run_with_held_out_rows(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    run, held = tmp_path / "run", tmp_path / "held.jsonl"
    lines = (quickstart / "sft.jsonl").read_text().splitlines()[:21]
    held.write_text("\n".join(lines) + "\n")
    short = str(quickstart / "eval.jsonl")
    config = (
        str(REPOSITORY / "examples" / "quickstart" / "sft.yaml"),
        f"experiment.dir={run}",
        f"model.path={quickstart / 'model'}",
        f"data.train={quickstart / 'sft.jsonl'}",
        f"data.eval={{held: {{source: {held}, measure: loss}}, greedy: {{source: {short}, limit: 12}}, "
        f"several: {{source: {short}, limit: 8, n: 4, temperature: 1.0, max_response_tokens: 6, reward: exact}}}}",
        "allocation=hf:d1|megatron:d1",
        "reward.name=exact",
        "rollout.max_response_tokens=8",
    )
    command = pentad(
        "train",
        *config,
        f"trainer.total_steps={STEPS}",
        "trainer.prompts_per_step=32",
        "trainer.val_before_train=true",
        "trainer.test_freq=2",
        "trainer.schedule.warmup_steps=0",
        "trainer.save_freq=2",
        "trainer.max_ckpt_to_keep=1",
        "trainer.keep_best=eval/held/loss",
    )
    assert command.ends_within(60) == 0, command.stderr
    rows = read(run)
    assert [step for step in rows if "eval/held/loss" in rows[step]] == [0, 2, 4]
    parts = [json.loads(line) for line in lines]
    assert rows[0]["eval/held/loss"] == pytest.approx(likelihood_loss(quickstart / "model", parts), rel=1e-4)
    assert rows[4]["eval/held/loss"] == pytest.approx(likelihood_loss(run / "model", parts), rel=1e-4)
    names = {name.removeprefix("eval/several/") for name in rows[4] if name.startswith("eval/several/")}
    assert names == {"accuracy", "reward", "response_length_mean", "mean_at_4", "pass_at_2", "pass_at_4"}

    # The same of the exported model, alone: greedy answers and losses are those of the run.
    command = pentad("eval", *config, str(run), "--json", str(tmp_path / "found.json"))
    assert command.ends_within(60) == 0, command.stderr
    sets = json.loads((tmp_path / "found.json").read_text())["sets"]
    assert sets["held"]["metrics"]["loss"] == pytest.approx(rows[4]["eval/held/loss"], rel=1e-5)
    for name in ("accuracy", "reward", "response_length_mean"):
        assert sets["greedy"]["metrics"][name] == rows[4][f"eval/greedy/{name}"]
    assert [len(answer["samples"]) for answer in sets["several"]["answers"]] == [4] * 8
    assert all(sample["tokens"] <= 6 for answer in sets["several"]["answers"] for sample in answer["samples"])
    assert "pass_at_4" in command.stdout and "evaluation" in command.stdout
