"""A real run with an engine of the user's: completions are replayed from a recording. No file of Pentad knows of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Command
from engine_calls import generate, load, samples
from recording import REPLAY, record
from transformers import AutoModelForCausalLM, AutoTokenizer

from pentad.engines.hf.engine import EmbeddedEngine

ROWS, SAMPLES, TOKENS = 4, 2, 6


@pytest.mark.slow
def test_a_run_replays_recorded_completions(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (quickstart / "train.jsonl").read_text().splitlines()[:ROWS]]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(quickstart / "model")
    model = AutoModelForCausalLM.from_pretrained(quickstart / "model", dtype=torch.float32)
    embedded = EmbeddedEngine(quickstart / "model", tokenizer=tokenizer, seed=77)
    load(embedded, ((name, parameter.data) for name, parameter in model.named_parameters()), 0)
    prompts = [torch.tensor(tokenizer(row["prompt"])["input_ids"]) for row in rows]
    requests = [request for prompt in prompts for request in samples(prompt, "any", SAMPLES, max_tokens=TOKENS)]
    completions = generate(embedded, requests)
    recording = record(tmp_path / "recording.jsonl", requests, completions)

    # With a learning rate of 0 the recorded log-probs stay those of the policy.
    (tmp_path / "replay.yaml").write_text(f"""
experiment: {{name: replay, dir: run}}
allocation: hf:d2+megatron:d1
model: {{path: {quickstart}/model}}
data: {{train: {data}, template: text}}
reward: {{name: exact}}
rollout:
  engine: {REPLAY}:ReplayEngine
  engine_options: {{recording: {recording}}}
  n: {SAMPLES}
  max_response_tokens: {TOKENS}
trainer: {{total_steps: 2, prompts_per_step: {ROWS}, optimizer: {{lr: 0.0}}, export: false}}
""")
    command = pentad("train", str(tmp_path / "replay.yaml"))
    assert command.ends_within(180) == 0, command.stderr
    assert command.stderr == ""
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["data/samples_generated"] == row["data/samples_consumed"] == ROWS * SAMPLES
        assert row["rollout/logprob_diff_max"] <= 1e-4
        mean = sum(len(completion.response_tokens) for completion in completions) / len(completions)
        assert row["rollout/response_length_mean"] == pytest.approx(mean)
    recorded = {tokenizer.decode(c.response_tokens, skip_special_tokens=True) for c in completions}
    logged = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(logged) == 8
    assert {sample["response"] for sample in logged} <= recorded
