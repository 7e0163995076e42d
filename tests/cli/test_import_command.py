"""`pentad import`, and files of other systems given to the other commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pentad.cli.foreign import count_rows
from pentad.cli.main import main

SCRIPT = """\
#!/bin/bash
N=${N:-1}
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=grpo \\
    data.train_files=train.jsonl \\
    data.train_batch_size=4 \\
    actor_rollout_ref.model.path=some/model \\
    actor_rollout_ref.actor.ppo_mini_batch_size=2 \\
    actor_rollout_ref.rollout.n=4 \\
    actor_rollout_ref.rollout.name=hf \\
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \\
    trainer.experiment_name=demo \\
    trainer.n_gpus_per_node=$N \\
    trainer.total_epochs=3
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n' * 40)
    path = tmp_path / "run.sh"
    path.write_text(SCRIPT)
    return path


def test_a_script_becomes_a_configuration(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(script), "trainer.check_replicas_freq=5", "--out", "run.yaml"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "   13  trainer.n_gpus_per_node = 1\n         -> allocation = hf:d1|megatron:d1\n" in out
    assert "-> trainer.total_steps = 30  (3 epochs of 40 rows, 4 a step)" in out
    assert "actor_rollout_ref.actor.optim.weight_decay = 0.01\n         -> trainer.optimizer.weight_decay" in out
    assert main(["config", "run.yaml"]) == 0
    out, err = capsys.readouterr()
    assert "optimizer_steps: 2" in out and "check_replicas_freq: 5" in out
    assert main(["import", str(script), "--out", "run.yaml"]) == 2
    assert "run.yaml exists" in capsys.readouterr().err


def test_without_out_the_configuration_is_all_of_stdout(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(script), "--engine", "sglang", "--gpus", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# Imported from run.sh (verl / siiRL) by `pentad import`.\n")
    assert "allocation: sglang:d2|megatron:d2" in out
    assert "14 keys" not in out and "11 keys: 11 taken" in err
    assert "does not run here as it stands" in err and "backend sglang is not available yet" in err


def test_json(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(script), "--json", "--rows", "8"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dialect"] == "verl" and report["settings"]["trainer.total_steps"] == 6
    keys = {row["key"]: row for row in report["keys"]}
    assert keys["trainer.total_epochs"]["as"] == 6 and keys["trainer.total_epochs"]["place"] == "run.sh:14"


def test_other_commands_take_such_a_file(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", str(script), "trainer.total_steps=7"]) == 0
    out = capsys.readouterr().out
    assert "total_steps: 7" in out
    assert "prompts_per_step: 4" in out and "# run.sh:6" in out


# text in place of the script's, arguments, part of the cause, part of the fix
REFUSED = {
    "a key of no rule": ("data.foo=1", [], "run.sh:14: data.foo = 1: no rule knows this key", "--drop data.foo"),
    "what would be learnt": (
        "actor_rollout_ref.actor.entropy_coeff=-0.1",
        [],
        "actor_rollout_ref.actor.entropy_coeff = -0.1: lower entropy",
        "--drop actor_rollout_ref.actor.entropy_coeff",
    ),
    "of the environment": (
        "trainer.total_training_steps=$STEPS",
        [],
        "trainer.total_steps: trainer.total_training_steps depends on $STEPS",
        "give trainer.total_steps=VALUE",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_in_doubt_is_not_run(script: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    line, arguments, cause, fix = REFUSED[case]
    script.write_text(SCRIPT.replace("trainer.total_epochs=3", line))
    assert main(["train", str(script), *arguments]) == 2
    err = capsys.readouterr().err
    assert cause in err and fix in err
    assert not (script.parent / "runs").exists()


def test_options_that_cannot_be(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--gpus", "0"], "--gpus is 0"),
        (["--from", "nemo"], "there is no dialect 'nemo'"),
        (["--drop", "x.y"], "there is no such key"),
        (["--var", "NO_SUCH_VARIABLE"], "the environment has no such variable"),
        (["trainer.total_steps"], "is no setting"),
    ):
        assert main(["import", str(script), *arguments]) == 2
        assert said in capsys.readouterr().err
    assert main(["import", "absent.sh"]) == 2
    assert "absent.sh: no such file" in capsys.readouterr().err


def test_rows_are_counted_without_reading_them_in(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b", "c"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}')
    assert count_rows(str(tmp_path / "a.parquet")) == 3
    assert count_rows(str(tmp_path)) == 5
    assert count_rows("hf:openai/gsm8k") is None


def test_import_answers_without_heavy_packages(script: Path) -> None:
    code = (
        "import sys; from pentad.cli.main import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'ray', 'transformers', 'megatron', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, "import", str(script)], check=True, capture_output=True, timeout=60)
