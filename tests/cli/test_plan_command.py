"""`pentad plan`: its three forms, what they print, what they refuse, and that nothing slow is imported for them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_how_context_parallel_ranks_share_attention_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    gathers = (
        "c2 gathers keys and values (all-gather): 28 heads, 4 of keys and values, cannot be exchanged over 8 ranks"
    )
    said = {
        "megatron:t4c2": (gathers, "all_gather"),
        "megatron:d2t4p2c2": (gathers, "all_gather"),
        "megatron:t2c2": ("c2 exchanges attention heads (all-to-all)", "a2a"),
        "megatron:t4": ("", None),
    }
    for allocation, (line, method) in said.items():
        code, out, err = plan(capsys, "--model", QWEN, "--allocation", allocation, "--json", file)
        assert (code, err) == (0, "")
        assert line in out and ("exchange" in out or "gathers" in out) is bool(line)
        assert json.loads(file.read_text())["context_method"] == method


def test_folded_interleaved_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    allocation = "megatron:(attn:d2p4t2c2v2|ffn:e4t1)"
    code, out, _ = plan(capsys, "--model", "Qwen/Qwen3-30B-A3B", "--allocation", allocation)
    assert code == 0
    for text in ("32 GPUs", "v2 chunks on each stage", "experts: e4 groups of 32, 2 replicas of each", "3.35 B active"):
        assert text in out
    chunks = [line for line in out.splitlines() if "layer" in line and line.startswith(("0 ", "1 ", "2 ", "3 ", "  "))]
    assert sum("layers" in line and "experts" not in line for line in chunks) == 8


def test_built_in_models_of_verify(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "--model", "qwen3_moe_dense", "--allocation", "megatron:d2p2e2")
    assert code == 0
    assert "qwen3_moe_dense: qwen3_moe, 4 layers" in out and "experts: e2 groups of 2" in out
    assert plan(capsys, "--model", "mistral", "--gpus", "2")[0] == 0


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


def test_speed_is_of_the_tokens_that_were_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "ranking.json"
    step = ("--tokens", 8192, "--step-tokens", 8193)
    assert plan(capsys, "--model", "Qwen/Qwen2.5-0.5B", "--gpus", 8, *step, "--json", file)[0] == 0
    layouts = json.loads(file.read_text())["layouts"]
    assert {item["microbatches"] for item in layouts} >= {1, 2}
    for item in layouts:
        time = item["step"]
        assert time["tokens_per_second"] * time["seconds"] == pytest.approx(8193)
    # The operations are those of the same tokens, whatever the layout.
    assert len({round(item["step"]["mfu"] * item["step"]["seconds"], 9) for item in layouts}) == 1


def test_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    code, out, err = plan(capsys, file, "algorithm.kl_coef=0.1")
    assert (code, err) == (0, "")
    assert "4 GPUs\n" in out and "hf:d4  on GPUs 0-3" in out and "trainer  megatron:d2t2  on GPUs 0-3" in out
    assert "reference  engine  cache  overhead" in out
    # 512 samples of at most 1,024 tokens, 8 to a microbatch, on two replicas.
    assert "32 microbatches a step on each replica" in out
    _, lighter, _ = plan(capsys, file, "allocation=hf:d1+megatron:t2", "trainer.dtype=fp32")
    assert "reference" not in lighter and "engine  cache" not in lighter and "fp32" in lighter
    assert "engines  GPUs  weights  cache  logits  overhead" in lighter and "Rollout engines fit" in lighter


def test_engines_that_do_not_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An hf engine is one GPU: it holds all weights, whatever the trainer's layout is."""
    written = tmp_path / "plan.json"
    big = ("--model", "Qwen/Qwen3-235B-A22B", "--allocation", "hf:d8+megatron:d2p8c4e8", "--json", written)
    code, out, _ = plan(capsys, *big)
    assert code == 0
    assert "The trainer fits" in out and "Does not fit: hf:d8 needs" in out and "Most is weights, 437.9 GiB" in out
    assert "\nFits" not in out
    found = json.loads(written.read_text())
    assert found["fits"] is False and found["excess_bytes"] < 0 < found["engine"]["excess_bytes"]
    # 94 layers, 4 key/value heads of 128, keys and values in bf16; 64 sequences of 4,096 tokens.
    assert found["engine"]["memory"]["cache"] == 94 * 2 * 4 * 128 * 2 * 64 * 4096
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    apart = ("model.path=Qwen/Qwen2.5-72B", "allocation=hf:d1+megatron:t8p2", "--gpu", "b200")
    _, out, _ = plan(capsys, file, *apart)
    assert "Does not fit: hf:d1 needs 157" not in out and "Rollout engines fit" in out
    _, out, _ = plan(capsys, file, *apart[:2], "--gpu", "h100")
    assert "Does not fit: hf:d1 needs" in out
    _, out, _ = plan(capsys, file, "allocation=hf:d1+megatron:d1", "rollout.batch_size=8192", "--gpu", "h100")
    assert "Does not fit: hf:d1" in out and "It would with rollout.batch_size=2048." in out


def test_shared_engine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Weights and cache of the engine are beside the trainer's; asleep, only the larger of the two works is counted."""
    written = tmp_path / "plan.json"
    shared = ("--model", QWEN, "--allocation", "hf:d4|megatron:d2t2", "--json", written)
    _, out, _ = plan(capsys, *shared)
    assert "buffers  engine  cache  overhead" in out and "Rollout engines" not in out
    parts = json.loads(written.read_text())["stages"][0]["memory"]
    assert parts["engine"] == 2 * 7_615_616_512
    assert parts["cache"] == 28 * 2 * 4 * 128 * 2 * 64 * 4096
    assert parts["activations"] > 0
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    awake, asleep = (
        json.loads(written.read_text())["stages"][0]
        for sleep in ("false", "true")
        if plan(capsys, file, f"rollout.sleep={sleep}", "--json", written)[0] == 0
    )
    assert asleep["peak_bytes"] < awake["peak_bytes"]
    resident = sum(awake["memory"][part] for part in ("weights", "gradients", "optimizer"))
    assert asleep["peak_bytes"] > resident
    _, out, _ = plan(capsys, file, "allocation=hf:d1|megatron:d1", "rollout.batch_size=1024", "--gpu", "h100")
    assert "It would with rollout.sleep=true" in out


def test_models_with_gpus_of_their_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What they hold is counted on their component, and nowhere else; they work beside the policy."""
    file, written = tmp_path / "run.yaml", tmp_path / "plan.json"
    file.write_text(CONFIG)
    ppo = ("algorithm.name=ppo", "algorithm.kl_coef=0.1")

    def planned(*overrides: str) -> tuple[str, dict[str, Any]]:
        code, out, err = plan(capsys, file, *overrides, "--json", written)
        assert (code, err) == (0, "")
        return out, json.loads(written.read_text())

    _, together = planned(*ppo, "allocation=hf:d1+megatron:d2t2")
    _, policy = planned("allocation=hf:d1+megatron:d2t2")
    out, apart = planned(*ppo, "allocation=hf:d1+megatron:d2t2+megatron[critic]:t2+megatron[ref]:d1")
    assert apart["gpus"] == 8 and together["gpus"] == 5 and together["apart"] == []
    assert "critic  megatron[critic]:t2  on GPUs 5-6" in out and "reference  megatron[ref]:d1  on GPU 7" in out
    assert "each rank of megatron[critic]:t2 (critic)" in out and "The reference fits" in out
    # Ranks of the policy are what they are without the two.
    assert apart["stages"] == policy["stages"] and apart["step"]["parts"] == policy["step"]["parts"]
    critic, reference = ({part["roles"][0]: part for part in apart["apart"]}[role] for role in ("critic", "reference"))
    held = ("weights", "gradients", "optimizer")
    memory = critic["stages"][0]["memory"]
    # On d2t2 the optimizer's state is shared by two replicas, on t2 it is not.
    whole = sum(memory[part] for part in held) - memory["optimizer"] // 2
    assert whole == pytest.approx(together["stages"][0]["memory"]["critic"], rel=1e-6)
    frozen = reference["stages"][0]["memory"]
    assert frozen["weights"] == pytest.approx(2 * together["stages"][0]["memory"]["reference"], rel=1e-3)
    assert frozen["gradients"] == frozen["optimizer"] == 0
    # Two replicas of the policy's t2 share the step; a critic of one t2 has all of it.
    assert critic["step_seconds"] > 1.5 * together["step"]["parts"]["critic"]
    joined, shared = planned(*ppo, "allocation=hf:d1+megatron:d2t2+megatron[critic]:t2|megatron[ref]:t2")
    (both,) = shared["apart"]
    assert sorted(both["roles"]) == ["critic", "reference"] and "reference and critic" in joined
    assert both["stages"][0]["memory"]["reference"] == together["stages"][0]["memory"]["reference"]
    code, _, err = plan(capsys, file, "allocation=hf:d1+megatron:d2+megatron[critic]:d1")
    assert code == 2 and "has no critic to hold" in err and "write hf:d1+megatron:d2" in err
    code, _, err = plan(capsys, file, *ppo, "allocation=hf:d1+megatron:d2+megatron[critic]:t3")
    assert code == 2 and "critic on megatron[critic]:t3" in err and "cannot be split by t3" in err


def test_configuration_with_recompute(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG)
    _, out, _ = plan(capsys, file, "megatron.transformer.recompute_granularity=full")
    assert "recompute full" in out


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A model that was made for 64 tokens, as that of the quickstart."""
    folder = tmp_path / "small"
    folder.mkdir()
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
    more = {"vocab_size": 128, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes, **more}))
    return folder


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("quickstart.yaml", "samples of 64 tokens: the model's positions; the settings would allow 1,032"),
        ("quickstart/sft.yaml", "rows of 64 tokens: the model's positions; the settings would allow 1,024"),
    ],
)
def test_quickstart(name: str, note: str, small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parents[2] / "examples" / name
    code, out, err = plan(capsys, config, f"model.path={small_model}")
    assert (code, err) == (0, "")
    assert f"note: microbatches are counted for {note}" in out


@pytest.mark.parametrize("algorithm", ["grpo", "sft"])
def test_sequences_are_capped_at_the_models_positions(
    algorithm: str, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, written = tmp_path / "run.yaml", tmp_path / "plan.json"
    file.write_text(CONFIG.replace("rollout: {n: 8, max_response_tokens: 512}\n", ""))
    small = [f"model.path={small_model}", f"algorithm.name={algorithm}", "allocation=megatron:d1", "--json", written]
    response = ["rollout.max_response_tokens=8"] if algorithm == "grpo" else []
    code, out, err = plan(capsys, file, *response, *small)
    assert (code, err) == (0, "")
    assert "of 64 tokens: the model's positions; the settings would allow 5" in out
    # 64 prompts of 8 samples, or 64 rows; 128 sequences of 64 tokens to a microbatch of 8,192.
    found = json.loads(written.read_text())
    assert (found["sequence"], found["microbatches"]) == (64, 4 if algorithm == "grpo" else 1)


@pytest.mark.parametrize("overrides", [[], ["algorithm.name=sft", "data.eval={a: b}"]])
@pytest.mark.parametrize("response", [64, 256])
def test_response_that_leaves_no_room_for_a_prompt(
    overrides: list[str], response: int, small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.replace("n: 8, max_response_tokens: 512", f"max_response_tokens: {response}"))
    code, out, err = plan(capsys, file, f"model.path={small_model}", "allocation=megatron:d1", *overrides)
    assert (code, out) == (2, "")
    assert f"rollout.max_response_tokens is {response}" in err and "made for 64 tokens" in err
    assert "set rollout.max_response_tokens to 63 or less" in err


def test_sequence_of_a_small_model(small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    for form in (("--allocation", "megatron:d2"), ("--gpus", 2)):
        assert plan(capsys, "--model", small_model, *form, "--json", file)[0] == 0
        assert json.loads(file.read_text())["sequence"] == 64
        code, out, err = plan(capsys, "--model", small_model, *form, "--sequence", 65)
        assert (code, out) == (2, "")
        assert "--sequence 65: a sequence has 65 tokens, but the model was made for 64" in err


def test_largest_minibatch_is_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, written = tmp_path / "run.yaml", tmp_path / "plan.json"
    file.write_text(CONFIG)
    overrides = ["trainer.prompts_per_step=3", "rollout.n=16", "algorithm.optimizer_steps=2", "allocation=megatron:d1"]
    assert plan(capsys, file, *overrides, "--json", written)[0] == 0
    # 2 prompts of 16 samples of 1,024 tokens, 8 to a microbatch; 1 prompt in the other minibatch.
    assert json.loads(written.read_text())["microbatches"] == 4


LAYOUT = ("--model", QWEN, "--allocation")
REFUSED = {
    "nothing": ((), "nothing to plan", "--model M --gpus 8"),
    "no layout": (("--model", QWEN), "no layout is given", "--gpus"),
    "no model": (("--gpus", "8"), "nothing to plan", "--model"),
    "unknown model": (("--model", "Qwen/Qwen2.5-8B", "--gpus", "8"), "no directory Qwen/Qwen2.5-8B", QWEN),
    "unsupported model": (
        ("--model", "deepseek-ai/DeepSeek-V3", "--gpus", "8"),
        "no directory deepseek-ai/DeepSeek-V3",
        "config.json, if its architecture is llama",
    ),
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
    "less than a microbatch": (
        ("--model", QWEN, "--gpus", "8", "--tokens", "4096", "--step-tokens", "4095"),
        "--step-tokens 4095 does not fill one microbatch of 4096 tokens",
        "give 4096 or more",
    ),
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
def test_answers_without_heavy_packages(form: str, tmp_path: Path) -> None:
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
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, timeout=60)
