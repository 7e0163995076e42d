"""`train` and `train --dry-run` refuse and accept the same, and a dry run starts and leaves nothing."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from bad_runs import ACCEPTED, CASES, nothing
from spoiled_run import Bench, bench, check_refusal

from pentad.cli.main import main
from pentad.run import training

__all__ = ["bench"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that came as far as starting their processes, which they do not start."""
    runs: list[str] = []
    monkeypatch.setattr(training, "train", lambda prepared, *_: runs.append(prepared.settings.experiment.name))
    return runs


def files(bench: Bench) -> dict[Path, bytes | None]:
    """All files of the bench but what Python keeps of its modules."""
    paths = (path for path in bench.folder.rglob("*") if "__pycache__" not in path.parts)
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("name", [*CASES, *ACCEPTED])
def test_a_dry_run_refuses_what_a_run_refuses_and_nothing_else(
    bench: Bench, capfd: pytest.CaptureFixture[str], started: list[str], name: str
) -> None:
    spoil, overrides, *texts = CASES.get(name) or ACCEPTED[name]
    if name == "wandb not installed" and find_spec("wandb"):
        pytest.skip("wandb is installed")
    spoil(bench)
    before = files(bench)
    dry = main(["train", str(bench.config), *overrides, "--dry-run"]), capfd.readouterr()
    assert files(bench) == before, "a dry run leaves nothing"
    assert started == []
    code, said = main(["train", str(bench.config), *overrides]), capfd.readouterr()
    assert (code, said.err) == (dry[0], dry[1].err)
    assert dry[1].out.startswith(said.out)
    assert "Warning" not in said.out
    if name in CASES:
        check_refusal(code, said.err, *texts[0])
        assert (bench.folder / "run").exists() == name.startswith("run "), "a refused run leaves nothing"
        assert started == [] and dry[1].out == said.out
    else:
        assert (code, said.err, started) == (0, "", ["bad"])
        assert dry[1].out.endswith("All checks passed; nothing was started.\n")


def test_what_is_told(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """The prompt as the model gets it, what the reward gets, and how much there is to do."""
    overrides = ["trainer.total_steps=6", "data.eval={mine: train.jsonl}", "data.eval_limit=4", "trainer.test_freq=4"]
    bench.data(*[{"prompt": "sort 4132=", "ground_truth": "1234", "level": 3}] * 8)
    assert main(["train", "--dry-run", str(bench.config), *overrides]) == 0
    told = capfd.readouterr().out.partition("\n\n")[2]
    for text in (
        "megatron:d1: ",
        "  prompt, 7 tokens:\n    sort 4132=\n",
        "  exact is given:\n    prompt        'sort 4132='",
        "    ground_truth  '1234'\n    by name       prompt, ground_truth, level",
        "  6 steps of 4 rows",
        "  48 responses are sampled, 2 to each prompt, of 8 tokens at most",
        "  tokens: about 336 of prompts, and at most 384 of responses",
        "  evaluations: 2, of 4 prompts each",
        f"  written to {bench.folder / 'run'}: at most ",
    ):
        assert text in told, told


def test_the_time_is_that_of_measured_steps_of_the_same_settings(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    from pentad.cli.loading import load_run
    from pentad.config.loading.show import effective_yaml

    def told(*overrides: str) -> str:
        arguments = ["train", "--dry-run", str(bench.config), "experiment.overwrite=true", *overrides]
        assert main(arguments) == 0
        return next(line for line in capfd.readouterr().out.splitlines() if line.startswith("  time: "))

    if not Path("/dev/nvidiactl").exists():
        assert "not known: there is no GPU here" in told()
    run = bench.folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(effective_yaml(load_run(bench.config, [])))
    (run / "versions.json").write_text("{}")
    times = (9.0, 2.0, 4.0, 3.0)
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "time/step": {t}}}\n' for i, t in enumerate(times, 1)))
    assert "about 1:00: 20 steps of 3.0 s, the median of the 3 steps" in told("trainer.total_steps=20")
    assert "with these settings" not in told("rollout.n=3")


def test_the_flag_stands_anywhere(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    config = str(bench.config)
    for arguments in (["--dry-run", config, "rollout.nn=1"], [config, "--dry-run", "rollout.nn=1"]):
        assert main(["train", *arguments]) == 2
        assert "did you mean rollout.n?" in capfd.readouterr().err
    nothing(bench)
    assert not (bench.folder / "run").exists()
