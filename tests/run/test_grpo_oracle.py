"""GRPO end to end against one process that knows nothing of Pentad.

The run samples, sleeps and wakes its engines, scores, penalises the divergence from the initial model and takes two
optimizer steps a batch. tests/oracles/grpo.py is then given what was sampled, and trains on it by transformers and
torch.
"""

import json
from collections.abc import Callable
from pathlib import Path

import grpo
import pytest
from command import Command
from quickstart import REPOSITORY
from transformers import AutoTokenizer

pytestmark = pytest.mark.slow

STEPS, ROWS, SAMPLES, TOKENS = 3, 4, 4, 6
LR, KL_COEF, UPDATES = 2e-3, 0.1, 2
# Where a gradient is as small as eps, Adam turns rounding errors of the gradient into steps; so eps is not tiny.
EPS = 1e-6
BETAS = (0.9, 0.95)
RECORDER = REPOSITORY / "tests" / "outside" / "recorder.py"


def reward(response: str) -> float:
    """Depends on every character, so that groups hold different rewards."""
    return sum((place + 1) * ord(character) for place, character in enumerate(response)) % 11 / 10


_REWARD = """
def score(response):
    return sum((place + 1) * ord(character) for place, character in enumerate(response)) % 11 / 10
"""


def read_recording(folder: Path, model: Path) -> list[grpo.Sample]:
    """What the engines answered, in the order of training."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[tuple[int, int, int, list[int], list[int], float]] = []
    for file in folder.glob("*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            step, place = map(int, line["request"].split("-"))
            text = tokenizer.decode(line["response"], skip_special_tokens=True)
            found.append((step, place, line["sample"], line["prompt"], line["response"], reward(text)))
    return [
        grpo.Sample(step, group=step * ROWS + place, prompt=prompt, response=response, reward=score)
        for step, place, _, prompt, response, score in sorted(found, key=lambda sample: sample[:3])
    ]


def check(folder: Path, allocation: str, pentad: Callable[..., Command], tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    recording.mkdir()
    (tmp_path / "scoring.py").write_text(_REWARD)
    (tmp_path / "run.yaml").write_text(f"""
experiment: {{name: oracle, dir: run}}
allocation: "{allocation}"
model: {{path: {folder}/model}}
data: {{train: {folder}/train.jsonl, template: text}}
reward: {{name: "scoring.py:score"}}
algorithm: {{kl_coef: {KL_COEF}, optimizer_steps: {UPDATES}}}
rollout:
  engine: {RECORDER}:RecordingEngine
  engine_options: {{folder: {recording}}}
  n: {SAMPLES}
  max_response_tokens: {TOKENS}
  sleep: true
trainer:
  total_steps: {STEPS}
  prompts_per_step: {ROWS}
  optimizer: {{lr: {LR}, eps: {EPS}, betas: [{BETAS[0]}, {BETAS[1]}]}}
  export: false
""")
    command = pentad("train", str(tmp_path / "run.yaml"))
    assert command.ends_within(240) == 0, command.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    samples = read_recording(recording, folder / "model")
    assert len(samples) == STEPS * ROWS * SAMPLES
    assert len({sample.reward for sample in samples}) > 3, "rewards hardly differ; the test shows nothing"
    recipe = grpo.Recipe(lr=LR, eps=EPS, betas=BETAS, kl_coef=KL_COEF, optimizer_steps=UPDATES)
    for row, step in zip(rows, grpo.train(grpo.load(folder / "model"), samples, recipe), strict=True):
        assert row["step"] == step.step
        assert row["train/loss"] == pytest.approx(step.loss, abs=1e-4), f"step {step.step}"
        assert row["train/grad_norm"] == pytest.approx(step.grad_norm, rel=1e-4), f"step {step.step}"
        assert row["reward/mean"] == pytest.approx(sum(s.reward for s in samples if s.step == step.step) / 16)
    assert rows[-1]["train/kl"] > 1e-4, "the policy hardly moved; the penalty shows nothing"


def test_dense_model_with_engines_that_sleep(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    check(quickstart, "hf:d2|megatron:t2", pentad, tmp_path)


def test_mixture_over_tensor_and_expert_ranks(mixture: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    check(mixture, "hf:d2|megatron:(attn:d1t2|ffn:d1t1e2)", pentad, tmp_path)
