"""Runs that are stopped: by a signal, or because one of their processes dies.

Each signal and each phase of a run comes here; that the signals do the same in every phase is shown in test_signals.py.
"""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command

pytestmark = pytest.mark.slow

EXIT_S = 150.0  # a busy machine takes long; see `Command`
Start = Callable[..., Command]


@pytest.fixture
def start_grpo(pentad: Start, quickstart: Path, tmp_path: Path) -> Start:
    """A run that has finished its first step and generates for minutes, for an evaluation.

    There are two: the reward of the first, of one row, says that the second, of many, is next.
    """
    (tmp_path / "mine.py").write_text("""
def score(response, mark=""):
    if mark:
        open(mark, "w").close()
    return float(len(response) > 9)
""")
    rows = (quickstart / "train.jsonl").read_text().splitlines()[:100]
    evaluating = tmp_path / "evaluating"
    (tmp_path / "short.jsonl").write_text(json.dumps(json.loads(rows[0]) | {"mark": str(evaluating)}))
    (tmp_path / "long.jsonl").write_text("".join(f"{row}\n" for row in rows) * 20)
    config = tmp_path / "grpo.yaml"
    config.write_text(f"""
experiment: {{name: failing, dir: run}}
allocation: hf:d1|megatron:d1
model: {{path: {quickstart}/model}}
data: {{train: {quickstart}/train.jsonl, eval: {{a: short.jsonl, b: long.jsonl}}, template: text, max_prompt_tokens: 9}}
reward: {{name: mine:score}}
rollout: {{n: 2, max_response_tokens: 54, batch_size: 1, temperature: 1000.0, eval_temperature: 1000.0}}
trainer: {{total_steps: 50, prompts_per_step: 4, test_freq: 1}}
""")

    def start(*overrides: str) -> Command:
        command = pentad("train", str(config), *overrides, patient=True)
        command.wait_until(evaluating.exists, "evaluation")
        return command

    return start


@pytest.fixture
def start_sft(pentad: Start, quickstart: Path, tmp_path: Path) -> Start:
    """A run that does nothing but train, seen in training."""
    config = tmp_path / "sft.yaml"
    config.write_text(f"""
experiment: {{name: failing, dir: run}}
allocation: megatron:d1
model: {{path: {quickstart}/model}}
algorithm: {{name: sft}}
data: {{train: {quickstart}/sft.jsonl, template: text}}
trainer: {{total_steps: 500, prompts_per_step: 256, tokens_per_microbatch: 1100}}
""")

    def start(*overrides: str, until: str = "step 2/500") -> Command:
        command = pentad("train", str(config), *overrides, patient=True)
        command.wait_for(until)
        return command

    return start


def check_stopped(command: Command, code: int, *texts: str, run: Path) -> None:
    """It ended in time with the code, said what is expected on less than a screen, and has its report."""
    began = time.monotonic()
    assert command.ends_within(EXIT_S) == code, command.stderr
    print(f"{code} after {time.monotonic() - began:.1f} s: {command.stderr}")
    for text in texts:
        assert text in command.stderr
    assert "Traceback" not in command.stderr + command.stdout
    assert "should not have happened" not in command.stderr
    assert len(command.stderr.splitlines()) < 8
    assert "Loss" in (run / "report.html").read_text()


def test_ctrl_c_twice_while_generating(start_grpo: Start, tmp_path: Path) -> None:
    command = start_grpo()
    command.signal_group(signal.SIGINT)
    command.wait_for_clean_up()
    command.signal_group(signal.SIGINT)
    check_stopped(command, 130, "interrupted by SIGINT during eval ", " of step 1 of 50", run=tmp_path / "run")


def test_signal_to_the_driver_in_training(start_sft: Start, tmp_path: Path) -> None:
    command = start_sft()
    command.process.send_signal(signal.SIGHUP)
    code = 128 + signal.SIGHUP
    check_stopped(command, code, "interrupted by SIGHUP during training of step", run=tmp_path / "run")


@pytest.mark.long
def test_ctrl_c_after_the_model_was_written_changes_nothing(start_sft: Start, tmp_path: Path) -> None:
    """The run is done; only its processes are still to be ended."""
    command = start_sft("trainer.total_steps=2", until="starting megatron:d1")
    model, end = tmp_path / "run" / "model", time.monotonic() + 180
    while not model.exists():
        assert command.process.poll() is None and time.monotonic() < end, command.stderr
        time.sleep(0.01)
    command.signal_group(signal.SIGINT)
    assert command.ends_within(EXIT_S) == 0, command.stderr
    assert command.stderr == ""
    assert "Loss" in (tmp_path / "run" / "report.html").read_text()


def test_interrupt_while_starting(start_sft: Start) -> None:
    command = start_sft(until="starting megatron:d1")
    command.wait_for_worker("ray::TrainerActor")
    command.signal_group(signal.SIGINT)
    assert command.ends_within(EXIT_S) == 130
    assert command.stderr.startswith("interrupted by SIGINT during start-up")
    assert "Traceback" not in command.stderr


def test_an_engine_that_hangs_is_replaced(start_grpo: Start) -> None:
    command = start_grpo("rollout.deadline_s=10")
    command.worker("ray::EngineActor").send_signal(signal.SIGSTOP)
    command.wait_for("requests of rollout engine 0 are done again")
    assert "rollout engine 0 did not finish rollout within 10 s (rollout.deadline_s)" in command.stdout
    command.process.send_signal(signal.SIGTERM)
    assert command.ends_within(EXIT_S) == 128 + signal.SIGTERM, command.stderr


@pytest.mark.parametrize(
    ("victim", "name"), [("ray::TrainerActor", "trainer rank 0"), ("ray::EngineActor", "rollout engine 0")]
)
def test_death_while_generating(start_grpo: Start, tmp_path: Path, victim: str, name: str) -> None:
    """The driver waits for the engine only, and notices the trainer's death all the same."""
    command = start_grpo("rollout.max_engine_restarts=0")
    process = command.worker(victim)
    process.kill()
    check_stopped(command, 1, f"failed: {name} failed during rollout: its process died", run=tmp_path / "run")
    assert f"{process.pid}.err" in command.stderr


def test_death_of_a_rank_in_training(start_sft: Start, tmp_path: Path) -> None:
    """The other rank fails in a collective then; the dead one is named."""
    command = start_sft("allocation=megatron:t2")
    process = command.worker("ray::TrainerActor")
    process.kill()
    check_stopped(command, 1, "failed: trainer rank", "failed during training: its process died", run=tmp_path / "run")
    assert f"{process.pid}.err" in command.stderr


@pytest.mark.long
def test_death_of_the_driver_while_generating(start_grpo: Start) -> None:
    command = start_grpo()
    assert len(command.processes()) > 5  # with Ray's own
    command.process.kill()
    assert command.ends_within(EXIT_S) == -signal.SIGKILL


def test_death_of_the_driver_in_training(start_sft: Start) -> None:
    command = start_sft("allocation=megatron:t2")
    command.process.kill()
    assert command.ends_within(EXIT_S) == -signal.SIGKILL


@pytest.mark.parametrize("process", ["gcs/gcs_server", "raylet/raylet"])
def test_signal_to_the_driver_while_ray_starts(start_sft: Start, tmp_path: Path, process: str) -> None:
    """In the main thread Ray would take SIGTERM for itself."""
    command = start_sft(until="starting megatron:d1")
    command.wait_for_worker(process)
    command.process.send_signal(signal.SIGTERM)
    assert command.ends_within(EXIT_S) == 128 + signal.SIGTERM, command.stderr
    assert command.stderr.startswith("interrupted by SIGTERM during start-up"), command.stderr
    assert len(command.stderr.splitlines()) == 2, command.stderr
    assert not (tmp_path / "run").exists()
