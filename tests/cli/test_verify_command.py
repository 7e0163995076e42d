"""`pentad verify layouts`: its table, exit codes, and what it refuses before it starts."""

import json
import sys

import pytest
import torch

from pentad.cli.main import main
from pentad.cli.verify import _megatron
from pentad.config.schema.megatron import MegatronSettings
from pentad.verify.models import tiny_config, write_random_model


def verify(*arguments: str) -> int:
    return main(["verify", "layouts", *arguments])


def test_layouts_that_agree(tmp_path, capsys):
    file = tmp_path / "report.json"
    folded = "hf:d1+megatron:(attn:d1t2c1|ffn:d1t1e2)"
    code = verify("qwen3_moe", "--layers", "2", "--allocations", "megatron:t2", folded, "--json", str(file))
    lines = capsys.readouterr().out.splitlines()
    assert code == 0, lines
    assert [line.split()[0] for line in lines[2:5]] == ["transformers", "megatron:t2", "megatron:t2e2"]
    assert lines[-1] == "all 3 agree"
    report = json.loads(file.read_text())
    assert report["passed"] and report["model"] == "qwen3_moe" and report["dtype"] == "fp32"
    first, second, third = report["layouts"]
    assert set(first["quantities"]) == {"log-probs", "loss", "gradient norm", "gradients"}
    for layout in (second, third):
        assert set(layout["quantities"]) == {"log-probs", "loss", "gradient norm", "gradients", "weights"}
        assert layout["quantities"]["gradients"]["where"].startswith("model.")
        assert layout["ranks"] == 2 and layout["passed"]


def test_a_difference_is_shown_and_is_exit_code_1(monkeypatch, capsys):
    from pentad.algorithms.policy_loss import PolicyLoss

    right = PolicyLoss.denominator
    monkeypatch.setattr(
        PolicyLoss, "denominator", lambda self, batch: right(self, batch) / torch.distributed.get_world_size()
    )
    assert verify("llama", "--layers", "2", "--allocations", "megatron:d2", "megatron:c2") == 1
    out = capsys.readouterr().out
    assert "DIFFERS gradients: off by 1.0e+00" in out
    assert "2 of 3 differ: megatron:d2, megatron:c2" in out


def test_a_failing_rank_is_told_and_the_next_layout_runs(monkeypatch, capsys):
    from pentad.trainers.megatron.trainer import Trainer

    right = Trainer.step

    def step(self: Trainer) -> dict[str, float]:
        if self.groups.dp.size() == 2 and self.groups.dp.rank() == 1:
            raise FloatingPointError("the gradient norm is nan")
        return right(self)

    monkeypatch.setattr(Trainer, "step", step)
    assert verify("llama", "--layers", "2", "--allocations", "megatron:d2", "megatron:p2") == 1
    out = capsys.readouterr().out
    assert "DIFFERS rank 1: FloatingPointError: the gradient norm is nan" in out
    assert "1 of 3 differ: megatron:d2" in out


def test_a_directory_and_settings(tmp_path, capsys):
    write_random_model(tiny_config("qwen2", layers=2), tmp_path / "model", torch.bfloat16)
    recompute = ["transformer.recompute_granularity=selective", "transformer.recompute_modules=[core_attn]"]
    arguments = ("--allocations", "megatron:d2", "--megatron", *recompute)
    assert verify(str(tmp_path / "model"), *arguments) == 0, capsys.readouterr()


def test_a_shrunk_directory_without_weights(tmp_path, capsys):
    tiny_config("mixtral", layers=6).save_pretrained(tmp_path / "model")
    arguments = ("--shrink", "--layers", "2", "--experts", "2", "--scale", "2", "--allocations", "megatron:d2e2")
    assert verify(str(tmp_path / "model"), *arguments) == 0, capsys.readouterr()


def test_list(capsys):
    assert verify("mixtral", "--list", "--max-ranks", "2") == 0
    listed = capsys.readouterr().out.split()
    assert " ".join(sorted(listed)).replace("megatron:", "") == "c2 c2e2 c2x2 d2 d2e2 d2x2 p2 p2v2 t2 t2e2 t2x2"


def test_a_trainer_is_verified_once_and_alone(capsys):
    """Both are said, beside the list, which stays one of layouts."""
    assert verify("llama", "--list", "--allocations", "hf:d1+megatron:t2", "megatron:d1t2", "megatron:d2") == 0
    shown = capsys.readouterr()
    assert shown.out.split() == ["megatron:t2", "megatron:d2"]
    assert shown.err.splitlines() == [
        "note: only the trainer of hf:d1+megatron:t2 is verified, megatron:t2",
        "note: megatron:d1t2 has the trainer of hf:d1+megatron:t2, megatron:t2, which is verified once",
    ]
    assert verify("llama", "--list", "--allocations", "megatron:t2", "megatron:d2") == 0
    assert capsys.readouterr().err == ""


def test_megatron_settings_are_read_as_in_a_configuration():
    read = _megatron(
        [
            "optimizer.decoupled_weight_decay=False",
            "transformer.moe_z_loss_coeff=1e-6",
            "transformer.recompute_granularity=selective",
            "transformer.recompute_modules=[core_attn, mlp]",
            "use_deterministic_algorithms=True",
        ]
    )
    assert read.optimizer == {"decoupled_weight_decay": False}
    assert read.transformer == {
        "moe_z_loss_coeff": 1e-6,
        "recompute_granularity": "selective",
        "recompute_modules": ["core_attn", "mlp"],
    }
    assert read.use_deterministic_algorithms and read.ddp == {}
    assert _megatron([]) == MegatronSettings()


def test_companions_of_full_recompute_are_said(capsys):
    read = _megatron(["transformer.recompute_granularity=full"])
    assert read.transformer["recompute_method"] == "uniform" and read.transformer["recompute_num_layers"] == 1
    assert "recompute_num_layers=1 are assumed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "cause", "fix"),
    [
        (["llama", "--allocations", "megatron:t3"], "allocation megatron:t3: the 4 attention heads", "use t2 or t4"),
        (["llama", "--allocations", "megatron:d2e2"], "llama is a dense model", "leave e2 out"),
        (["llama", "--allocations", "megatron:t2", "megatron:p8"], "4 layers, too few for p8", "use p4"),
        (["llama", "--allocations", "megatrn:t2"], "there is no backend megatrn", "megatron:t2"),
        (["llama", "--shrink"], "built-in", "leave --shrink out"),
        (["llama", "--scale", "2"], "--scale is read with --shrink only", "leave --scale out"),
        (["llama", "--allocations", "megatron:t2", "--max-ranks", "2"], "--max-ranks is not read", "leave one"),
        (["llama", "--max-ranks", "1"], "there is no layout", "larger --max-ranks"),
        (["llama", "--max-ranks", "0"], "--max-ranks 0 is not above 0", "1 or more"),
        (
            ["llama", "--megatron", "transfomer.x=1"],
            "transfomer.x=1 is not PART.KEY=VALUE",
            "transformer, ddp, optimizer",
        ),
        (
            ["llama", "--allocations", "megatron:d2", "--megatron", "ddp.nonsense=1"],
            "ddp.nonsense is not among the fields that may be set",
            "remove",
        ),
        (
            ["llama", "--megatron", "transformer.recompute_granularity=fulll"],
            "expected full or selective, got fulll",
            "remove megatron.transformer.recompute_granularity",
        ),
        (["llama", "--megatron", "transformer.x=[a"], "the value is not valid YAML", "transformer.x='"),
        (["llama", "--megatron", "transformer.x=1", "transformer.x=2"], "transformer.x is given twice", "keep one"),
        (["llama", "--megatron", "transformer.x=1", "transformer.x.y=2"], "are both given", "give the whole"),
        (["llama", "--megatron", "transformer.x="], "has no value", "transformer.x=null"),
        (["llama", "--megatron", "transformer.x"], "transformer.x is not PART.KEY=VALUE", "transformer, ddp"),
        (
            ["llama", "--megatron", "use_deterministic_algorithms=on"],
            "use_deterministic_algorithms is 'on'",
            "=true, or false",
        ),
        (
            ["llama", "--megatron", "use_deterministic_algorithms=true", "use_deterministic_algorithms=false"],
            "is given twice",
            "keep one",
        ),
        (["llama", "--list", "--json", "x.json"], "--json is not read together with --list", "leave --json"),
        (["llama", "--list", "--megatron", "ddp.x=1"], "--megatron is not read together with --list", "leave"),
        (["llama", "--list", "--dtype", "fp32"], "--dtype is not read together with --list", "leave"),
        (["llama", "--list", "--deadline", "60"], "--deadline is not read together with --list", "leave"),
        (["llama", "--deadline", "nan"], "--deadline nan is not a number of seconds from 1 to 1,000,000", "120"),
        (["llama", "--deadline", "inf"], "--deadline inf is not a number of seconds", "120"),
        (["llama", "--deadline", "0.25"], "--deadline 0.25 is not", "120"),
        (["llama", "--deadline", "-3"], "--deadline -3 is not", "120"),
        (["llama", "--json", "/tmp"], "--json: /tmp is a directory", "give a file, as /tmp/layouts.json"),
        (["./nothing", "--allocations", "megatron:t2"], "there is no directory ./nothing", "check the path"),
        (["llama", "--json", "/nowhere/at/all.json"], "there is no directory /nowhere/at", "make it"),
    ],
)
def test_refused_before_anything_starts(arguments, cause, fix, capsys):
    assert verify(*arguments) == 2
    shown = capsys.readouterr()
    assert cause in shown.err
    assert fix in shown.err
    assert "transformers " not in shown.out


def test_an_unknown_name_is_refused_at_once_with_those_there_are():
    """In a process of its own: what takes seconds is the import of torch, which others here have done."""
    import subprocess

    code = (
        "import sys; from pentad.cli.main import main; code = main(['verify', 'layouts', 'qwen9']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "qwen9 is no built-in model" in done.stderr and "did you mean qwen3 or qwen2?" in done.stderr
    assert "mistral, qwen2, qwen3, qwen3_moe, qwen3_moe_dense" in done.stderr


def test_more_gpus_than_there_are(monkeypatch, capsys):
    import pentad.verify.verification as verification

    monkeypatch.setattr(verification, "usable_devices", lambda: 2)
    assert verify("llama", "--allocations", "megatron:d4") == 2
    assert "megatron:d4 needs 4 GPUs, and this machine has 2" in capsys.readouterr().err


def test_the_command_line_stays_light():
    import subprocess

    code = "import sys, pentad.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
