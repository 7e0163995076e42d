"""`pentad init`: what it writes is what the data and the machine say, replaces nothing, and passes a dry run."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from spoiled_run import Bench, bench, check_refusal

from pentad.cli.main import main
from pentad.config.schema.algorithms.grpo import GRPOSettings
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.families.model_files import facts_of
from pentad.planning.gpus import GPUS
from pentad.record.machine import gpus_here
from pentad.run.first_layout import choose_layout

__all__ = ["bench"]
QUESTION = "sort 4132="
VERL = {"prompt": QUESTION, "data_source": "openai/gsm8k", "reward_model": {"ground_truth": "7", "style": "rule"}}

# What a row is like -> its columns, the reward, and what else must be in the file.
ROWS: dict[str, tuple[dict, str, dict[str, str]]] = {
    "numbers": ({"question": QUESTION, "answer": "1,234.5"}, "math", {"prompt_column": "question"}),
    "numbers as numbers": ({"prompt": QUESTION, "answer": 12}, "math", {"ground_truth_column": "answer"}),
    "solutions": ({"question": QUESTION, "answer": "1 + 1\n#### 2"}, "gsm8k", {"ground_truth_column": "answer"}),
    "known source": (VERL, "auto", {}),
    "text": ({"prompt": QUESTION, "ground_truth": "one two"}, "run_reward.py:score", {}),
    "codes": ({"prompt": QUESTION, "ground_truth": "0123"}, "run_reward.py:score", {}),
    "no ground truth": ({"prompt": QUESTION, "level": 3}, "run_reward.py:score", {}),
}


def init(bench: Bench, *more: str) -> int:
    """The command in the folder of the bench, for a CPU."""
    return main(["init", "model", "train.jsonl", "--gpus", "0", *more])


@pytest.mark.parametrize("name", ROWS)
def test_what_is_written_passes_a_dry_run(bench: Bench, capfd: pytest.CaptureFixture[str], name: str) -> None:
    bench.config.unlink()
    row, reward, columns = ROWS[name]
    bench.data(*[row] * 6)
    assert init(bench) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    written = yaml.safe_load((bench.folder / "run.yaml").read_text())
    assert written["reward"]["name"] == reward and f"reward.name: {reward}, as " in said
    assert columns.items() <= written["data"].items()
    assert written["allocation"] == "hf:d1|megatron:d1"
    assert said.endswith("  pentad train run.yaml --dry-run\n  pentad train run.yaml\n")
    assert main(["train", "run.yaml", "--dry-run"]) == 0, capfd.readouterr().err
    stub = bench.folder / "run_reward.py"
    assert stub.exists() == reward.startswith("run_reward")
    if stub.exists():
        assert ("ground_truth" in stub.read_text()) == ("ground_truth" in row)
        assert "write in run_reward.py what a response is worth; then:" in said


def test_a_reward_that_is_not_filled_says_so(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.config.unlink()
    bench.data(*[{"prompt": QUESTION, "ground_truth": "one"}] * 2)
    (bench.folder / "answers.txt").write_text("one\ntwo\n")
    assert init(bench) == 0
    assert main(["reward", "try", "run.yaml", "--answers", "answers.txt"]) == 1
    assert "NotImplementedError: write in run_reward.py what a response is worth" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["run.yaml", "run_reward.py"])
def test_nothing_is_replaced(bench: Bench, capfd: pytest.CaptureFixture[str], name: str) -> None:
    bench.config.unlink()
    bench.data(*[{"prompt": QUESTION, "ground_truth": "one"}] * 2)
    (bench.folder / name).write_text("mine")
    before = sorted(bench.folder.iterdir())
    check_refusal(init(bench), capfd.readouterr().err, f"{name} is there already", "--out")
    assert sorted(bench.folder.iterdir()) == before and (bench.folder / name).read_text() == "mine"


def test_evaluations_may_have_longer_prompts(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """As long as the model's positions allow; longer ones are left out."""
    bench.config.unlink()
    for length, dropped in ((30, False), (70, True)):
        (bench.folder / "eval.jsonl").write_text(json.dumps({"prompt": "4" * length, "ground_truth": "4"}) + "\n")
        with (bench.folder / "eval.jsonl").open("a") as file:
            file.write(json.dumps({"prompt": QUESTION, "ground_truth": "4"}) + "\n")
        assert init(bench, "--eval", "eval.jsonl", "--out", f"{length}.yaml", "reward.name=exact") == 0
        assert ("too_long: drop" in (bench.folder / f"{length}.yaml").read_text()) == dropped
        assert main(["train", f"{length}.yaml", "--dry-run"]) == 0, capfd.readouterr().err


def test_what_the_user_sets_stays(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """Before and after options; the rest is chosen to go with it."""
    (bench.folder / "runs" / "model-train").mkdir(parents=True)
    more = ["rollout.n=3", "--out", "other.yaml", "--eval", "train.jsonl", "rollout.max_response_tokens=5"]
    assert init(bench, *more, "data.eval_limit=4", "reward.name=exact") == 0, capfd.readouterr().err
    written = yaml.safe_load((bench.folder / "other.yaml").read_text())
    assert written["rollout"] == {"n": 3, "max_response_tokens": 5}
    assert written["reward"]["name"] == "exact" and not (bench.folder / "other_reward.py").exists()
    assert written["data"]["eval"] == {"test": "train.jsonl"}
    assert written["experiment"]["name"] == "model-train-2", "a directory of that name is there"
    assert main(["train", "other.yaml", "--dry-run"]) == 0, capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["none", "train.jsonl"], ["none", "check the path"]),
        (["model", "none.jsonl"], ["none.jsonl does not exist", "train.jsonl"]),
        (["model", "train.jsonl", "--gpu", "h100"], ["--gpus"]),
        (["model", "train.jsonl", "--source", "raw"], ["--source is for gsm8k"]),
        (["model", "train.jsonl", "rollout.nn=3"], ["did you mean rollout.n?"]),
    ],
)
def test_refused(bench: Bench, capfd: pytest.CaptureFixture[str], arguments: list[str], texts: list[str]) -> None:
    bench.config.unlink()
    check_refusal(main(["init", *arguments]), capfd.readouterr().err, *texts)
    assert not bench.config.exists()


@pytest.fixture
def gpus(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four GPUs, as its driver's tool tells."""
    folder = tmp_path_factory.mktemp("bin")
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 1 2 3 4; do echo 'NVIDIA H100 80GB HBM3, 81559'; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("gpus")
def test_the_gpus_of_the_machine_are_used(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.config.unlink()
    bench.data(*[{"prompt": QUESTION, "answer": 12}] * 80)
    assert main(["init", "model", "train.jsonl"]) == 0, capfd.readouterr().err
    written = yaml.safe_load((bench.folder / "run.yaml").read_text())
    assert written["allocation"].startswith("hf:d4|megatron:")
    assert "on each of 4 x h100" in capfd.readouterr().out
    assert main(["train", "run.yaml", "--dry-run"]) == 0, capfd.readouterr().err
    told = capfd.readouterr().out
    assert " of 79.6 GiB on each GPU (overhead " in told and "s a step, predicted for a h100)" in told
    check_refusal(
        main(["train", "run.yaml", "--dry-run", "allocation=hf:d8|megatron:d8"]),
        capfd.readouterr().err,
        "needs 8 GPUs; this machine has 4",
        "choose an allocation of at most 4",
    )


def test_of_hidden_gpus_nothing_is_used(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [round(size) for _, size in gpus_here()] == [80] * 4
    for visible, count in {"": 0, "-1": 0, "1,3": 2, "GPU-aaaa": 1}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert len(gpus_here()) == count


def settings_for(model: str) -> RunSettings:
    return RunSettings.model_validate(
        {
            "experiment": {"name": "x"},
            "model": {"path": model},
            "data": {"train": "x.jsonl"},
            "trainer": {"total_steps": 1, "tokens_per_microbatch": 8192},
            "algorithm": GRPOSettings(name="grpo"),
        }
    )


@pytest.mark.parametrize(("model", "gpus"), [("Qwen/Qwen3-8B", 8), ("Qwen/Qwen3-0.6B", 1), ("Qwen/Qwen3-30B-A3B", 16)])
def test_the_allocation_uses_all_gpus_and_fits(model: str, gpus: int) -> None:
    gpu = GPUS["h200"]
    allocation, _, plan = choose_layout(settings_for(model), facts_of(model), gpu, gpus, 3000)
    assert plan.fits and plan.allocation.world_size == gpus and str(plan.allocation) == allocation
    assert plan.allocation.colocated


def test_what_the_user_has_set_is_not_changed_to_fit() -> None:
    """A model that fits on one GPU only where engines sleep."""
    model, gpu = "Qwen/Qwen3-8B", replace(GPUS["h200"], memory_gib=210.0)
    _, changes, plan = choose_layout(settings_for(model), facts_of(model), gpu, 1, 3000)
    assert plan.fits and changes == {"rollout.sleep": True}
    with pytest.raises(UserError, match="on no layout"):
        choose_layout(settings_for(model), facts_of(model), gpu, 1, 3000, ["rollout.sleep"])


def test_what_fits_nowhere_is_refused_with_the_nearest() -> None:
    model = "Qwen/Qwen3-30B-A3B"
    with pytest.raises(UserError, match=r"fits on 1 GPU of 79 GiB on no layout; the nearest.* needs .* GiB on each"):
        choose_layout(settings_for(model), facts_of(model), GPUS["h100"], 1, 3000)


def test_a_first_run_is_named_by_files(tmp_path: Path) -> None:
    from pentad.run.first_config import _free_name

    assert _free_name("Qwen/Qwen3-8B", "data/gsm8k/train.parquet") == "Qwen3-8B-gsm8k"
    assert _free_name("models/a.b.gguf", "hf:org/some_set:main") == "a.b-some_set"
    assert _free_name("m", "reasoning_gym:chain_sum") == "m-chain_sum"
