"""`pentad plan`: its three forms, what they print, what they refuse, and that they answer at once."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pentad.cli.main import main

QWEN = "Qwen/Qwen2.5-7B"
CONFIG = """\
experiment: {name: demo}
model: {path: Qwen/Qwen2.5-1.5B}
allocation: hf:d4|megatron:d2t2
data: {train: train.jsonl, max_prompt_tokens: 512}
rollout: {n: 8, max_response_tokens: 512}
trainer: {total_steps: 10, prompts_per_step: 64, tokens_per_microbatch: 8192}
"""


def plan(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["plan", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_layout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    allocation = "sglang:d4t4+megatron:d2t4p2"
    code, out, err = plan(capsys, "--model", QWEN, "--allocation", allocation, "--microbatches", "4", "--json", file)
    assert (code, err) == (0, "")
    for text in (
        "7.62 B parameters",
        "\n32 GPUs\n",
        "rollout  sglang:d4t4  on GPUs 0-15",
        "trainer  megatron:d2t4p2  on GPUs 16-31",
        "p2 stages x d2 replicas x t4 parts",
        "embedding + layers 0-15",
        "layers 16-27 + norm, output layer",
        "stage  weights  gradients  optimizer  activations  logits  buffers  overhead    all",
        "Fits: ",
        "4 microbatches a step on each replica; bubble 25.0% = (p2 - 1) / (v1 * 4)",
        "MFU",
    ):
        assert text in out
    found = json.loads(file.read_text())
    assert (found["gpus"], found["trainer_gpus"], found["parameters"]) == (32, 16, 7_615_616_512)
    assert [stage["chunks"][0]["layers"][-1] for stage in found["stages"]] == [15, 27]
    for stage in found["stages"]:
        assert stage["peak_bytes"] == sum(stage["memory"].values())


def test_folded_interleaved_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    allocation = "megatron:(attn:d2p4t2c2v2|ffn:e4t1)"
    code, out, _ = plan(capsys, "--model", "Qwen/Qwen3-30B-A3B", "--allocation", allocation)
    assert code == 0
    for text in ("32 GPUs", "v2 chunks on each stage", "experts: e4 groups of 32, 2 replicas of each", "3.35 B active"):
        assert text in out
    chunks = [line for line in out.splitlines() if "layer" in line and line.startswith(("0 ", "1 ", "2 ", "3 ", "  "))]
    assert sum("layers" in line and "experts" not in line for line in chunks) == 8


def test_what_does_not_fit_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "--model", QWEN, "--allocation", "megatron:d8", "--tokens", 16384, "--gpu", "h100")
    assert code == 0
    assert "Does not fit: stage 0 needs" in out and "It would with recompute full." in out
    _, out, _ = plan(capsys, "--model", QWEN, "--allocation", "megatron:d1", "--gpu", "h100", "--recompute", "full")
    assert "Most is optimizer, 85.1 GiB" in out


def test_ranking(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "ranking.json"
    arguments = ("--model", QWEN, "--gpus", 8, "--gpu", "h100", "--tokens", 16384, "--top", 3, "--json", file)
    code, out, err = plan(capsys, *arguments)
    assert (code, err) == (0, "")
    rows = [line for line in out.splitlines() if line.strip()[:2] in ("1 ", "2 ", "3 ", "4 ")]
    assert len(rows) == 3 and "fastest" in rows[0] and all("+" in row for row in rows[1:])
    assert "do not fit" in out and "GiB too much" in out
    found = json.loads(file.read_text())["layouts"]
    assert all(item["reason"] for item in found) and {item["fits"] for item in found} == {True, False}


def test_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    code, out, err = plan(capsys, file, "algorithm.kl_coef=0.1")
    assert (code, err) == (0, "")
    assert "4 GPUs\n" in out and "hf:d4  on GPUs 0-3" in out and "trainer  megatron:d2t2  on GPUs 0-3" in out
    assert "reference" in out and "engine" in out
    # 512 samples of at most 1,024 tokens, 8 to a microbatch, on two replicas.
    assert "32 microbatches a step on each replica" in out
    _, lighter, _ = plan(capsys, file, "allocation=hf:d1+megatron:t2", "trainer.dtype=fp32")
    assert "reference" not in lighter and "engine" not in lighter and "fp32" in lighter


def test_configuration_with_recompute(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    _, out, _ = plan(capsys, file, "megatron.transformer.recompute_granularity=full")
    assert "recompute full" in out


LAYOUT = ("--model", QWEN, "--allocation")
REFUSED = {
    "nothing": ((), "nothing to plan", "--model M --gpus 8"),
    "no layout": (("--model", QWEN), "no layout is given", "--gpus"),
    "no model": (("--gpus", "8"), "nothing to plan", "--model"),
    "unknown model": (("--model", "Qwen/Qwen2.5-8B", "--gpus", "8"), "no directory Qwen/Qwen2.5-8B", QWEN),
    "heads": ((*LAYOUT, "megatron:t3"), "28 attention heads", "use t2 or t4"),
    "dense": ((*LAYOUT, "megatron:d2e2"), "dense model", "leave e2 out"),
    "stages": ((*LAYOUT, "megatron:p29"), "28 layers, too few", "p28"),
    "sizes": ((*LAYOUT, "megatron:d2d8"), "given twice", "megatron:d2"),
    "gpu": ((*LAYOUT, "megatron:d1", "--gpu", "h20"), "gpu: 'h20' is not known", "h200"),
    "dtype": ((*LAYOUT, "megatron:d1", "--dtype", "bfloat16"), "called bf16", "write bf16"),
    "recompute": ((*LAYOUT, "megatron:d1", "--recompute", "some"), "there is no 'some'", "selective"),
    "tokens": ((*LAYOUT, "megatron:d1", "--tokens", "0"), "tokens is 0", "1 or more"),
    "sequence": ((*LAYOUT, "megatron:d1", "--sequence", "9000"), "do not fit into a microbatch", "8192"),
    "groups": ((*LAYOUT, "megatron:p4v7", "--microbatches", "6"), "groups of p4", "4 or 8"),
    "unread top": ((*LAYOUT, "megatron:d1", "--top", "3"), "--top is not read", "leave --top out"),
    "unread microbatches": (
        ("--model", QWEN, "--gpus", "8", "--microbatches", "2"),
        "--microbatches is not read together with --gpus",
        "leave",
    ),
    "both": ((*LAYOUT, "megatron:d1", "--gpus", "8"), "--gpus is not read together with --allocation", "leave"),
    "config and model": (("run.yaml", "--model", QWEN), "--model is not read together with a CONFIG", "leave"),
    "no file": (("absent.yaml",), "absent.yaml", "file"),
    "gpus": (("--model", QWEN, "--gpus", "0"), "--gpus 0", "1 or more"),
    "top": (("--model", QWEN, "--gpus", "8", "--top", "0"), "--top 0 shows nothing", "1 or more"),
    "not a number": (("--model", QWEN, "--gpus", "many"), "invalid int value", "--help"),
    "step tokens": (("--model", QWEN, "--gpus", "8", "--step-tokens", "0"), "--step-tokens 0", "1 or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, cause, fix = REFUSED[case]
    code, out, err = plan(capsys, *arguments)
    assert (code, out) == (2, "")
    assert cause in err.split("fix:")[0] and fix in err


def test_configuration_that_the_model_does_not_permit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    code, _, err = plan(capsys, file, "allocation=megatron:t5")
    assert code == 2 and "12 attention heads of qwen2 cannot be split by t5" in err


def test_unwritable_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = plan(capsys, *LAYOUT, "megatron:d1", "--json", tmp_path / "absent" / "plan.json")
    assert code == 2 and "cannot be written" in err


@pytest.mark.parametrize("form", ["layout", "ranking", "config"])
def test_answers_at_once_without_heavy_packages(form: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    arguments = {
        "layout": [*LAYOUT, "megatron:d2t4p2"],
        "ranking": ["--model", "Qwen/Qwen3-30B-A3B", "--gpus", "64"],
        "config": [str(file)],
    }[form]
    code = (
        "import sys; from pentad.cli.main import main; assert main(['plan', *sys.argv[1:]]) == 0; "
        "heavy = {'torch', 'ray', 'transformers', 'megatron', 'numpy', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=60)
    seconds = time.monotonic() - start
    print(f"{form}: {seconds:.2f} s from a cold start")
    # 0.3 to 0.7 s on an idle machine; importing torch alone would take more than this.
    assert seconds < 5
