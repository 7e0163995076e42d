"""A run with adapters and a reference: one that stopped and went on ends with the same adapters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Command
from quickstart import REPOSITORY
from safetensors import safe_open
from transformers import AutoModelForCausalLM

EXAMPLES = REPOSITORY / "examples"


def rows(run: Path) -> list[dict[str, float]]:
    """Metrics of training steps."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "time/step" in row]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    with safe_open(run / "model" / "adapter_model.safetensors", framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a dict


@pytest.mark.long
@pytest.mark.timeout(900)
def test_grpo_goes_on_with_the_same_adapters(quickstart: Path, pentad: Callable[..., Command], tmp_path: Path) -> None:
    # The untrained model answers nothing right; this tells its answers apart.
    (tmp_path / "rewards.py").write_text(
        "def score(response, ground_truth):\n    return sum(map(ord, response)) % 5 / 4\n"
    )

    def run(name: str, *more: str) -> Path:
        command = pentad(
            "train",
            str(EXAMPLES / "quickstart.yaml"),
            f"experiment.dir={tmp_path / name}",
            f"model.path={quickstart / 'model'}",
            f"data.train={quickstart / 'train.jsonl'}",
            f"data.eval={{sort: {quickstart / 'eval.jsonl'}}}",
            "trainer.val_before_train=false",
            "trainer.prompts_per_step=4",
            "trainer.schedule.warmup_steps=0",
            "trainer.check_replicas_freq=1",
            "algorithm.kl_coef=0.1",
            "model.lora.rank=2",
            "reward.name=rewards:score",
            "trainer.optimizer.lr=1.0e-2",
            *more,
        )
        assert command.ends_within(240) == 0, command.stderr
        assert "LoRA of rank 2: what is trained has 4" in command.stdout
        assert "adapters (and once the base) go to the engines" in command.stdout
        return tmp_path / name

    straight = run("straight", "trainer.total_steps=3", "trainer.save_freq=0")
    run("resumed", "trainer.total_steps=2", "trainer.save_freq=2")
    resumed = run("resumed", "trainer.total_steps=3", "trainer.save_freq=2")
    for one, other in zip(rows(straight), rows(resumed), strict=True):
        for key in ("train/loss", "train/grad_norm", "reward/mean"):
            assert one[key] == other[key]
        assert one["rollout/logprob_diff_max"] < 1e-4
    assert len({row["reward/mean"] for row in rows(straight)}) > 1
    first, second = adapter(straight), adapter(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    exported = tmp_path / "exported"
    command = pentad("checkpoint", "export", str(resumed), "--out", str(exported))
    assert command.ends_within(60) == 0, command.stderr
    (exported / "model").mkdir()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (exported / file).rename(exported / "model" / file)
    assert all(torch.equal(value, first[name]) for name, value in adapter(exported).items())
    # The reference is the model without adapters, which are nothing before the first step.
    kl = [row["train/kl"] for row in rows(straight)]
    assert kl[0] == pytest.approx(0.0, abs=1e-9)
    assert kl[-1] > 1e-6
    config = json.loads((straight / "model" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["base_model_name_or_path"] == str(quickstart / "model")
    merged = tmp_path / "merged"
    command = pentad("export", str(straight), "--merge", "--out", str(merged))
    assert command.ends_within(60) == 0, command.stderr
    assert AutoModelForCausalLM.from_pretrained(merged).num_parameters() > 0
