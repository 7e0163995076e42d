"""The display, on recorded consoles, a real pseudo-terminal and a real pipe."""

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from pentad.record.terminal import Terminal, duration

STEP = {
    "reward/mean": 0.4125,
    "train/kl": 0.0012,
    "train/grad_norm": 0.8,
    "train/loss": -0.01,
    "rollout/response_length_mean": 180.0,
    "perf/tokens_per_s": 5120.4,
    "time/rollout": 8.1,
    "time/train": 3.9,
    "time/step": 12.4,
}
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def plain() -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    return Terminal(12, "demo", console=Console(file=out, width=100)), out


def screen(terminal: Terminal, width: int = 120) -> str:
    """What the live display would show now."""
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(terminal._render())
    return console.export_text()


def live(width: int = 120) -> tuple[Terminal, io.StringIO]:
    out = io.StringIO()
    return Terminal(12, "demo", console=Console(file=out, width=width, height=30, force_terminal=True), live=True), out


def test_a_pipe_gets_one_plain_line_a_step() -> None:
    terminal, out = plain()
    with terminal:
        with terminal.phase("rollout", 64) as phase:
            phase.advance(32, tokens=1000)
        terminal.step(3, STEP)
        terminal.message("[bold]saved[/nothing]")
        terminal.write(3, {"eval/gsm8k/accuracy": 0.431})
    assert out.getvalue().splitlines() == [
        "demo: 12 steps",
        "step 3/12  reward 0.412  loss -0.0100  KL 0.0012  grad norm 0.800  length 180  tokens/s 5,120"
        "  12.4 s (rollout 8.1, train 3.9)",
        "[bold]saved[/nothing]",
        "step 3/12  eval/gsm8k/accuracy 43.1%",
    ]


def test_reward_failures_are_shown_when_there_are_any() -> None:
    terminal, out = plain()
    with terminal:
        terminal.step(1, {"reward/mean": 0.5, "reward/failures": 0})
        terminal.step(2, {"reward/mean": 0.5, "reward/failures": 3})
    assert out.getvalue().splitlines()[1:] == ["step 1/12  reward 0.500", "step 2/12  reward 0.500  reward failures 3"]
    terminal, _ = live()
    with terminal:
        terminal.step(1, {"reward/mean": 0.5, "reward/failures": 0})
        assert "failures" not in screen(terminal)
        terminal.step(2, {"reward/mean": 0.5, "reward/failures": 3})
        assert "reward failures" in screen(terminal)


def test_a_long_phase_in_a_log_shows_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pentad.record.terminal._PLAIN_PHASE_S", 0.0)
    terminal, out = plain()
    with terminal:
        terminal.phase("rollout", 64).advance(16, note="queue 4")
    assert out.getvalue().splitlines()[-1] == "step 1/12  rollout 16/64  queue 4"


def test_the_live_display_shows_phase_steps_and_best_evaluation() -> None:
    terminal, _ = live()
    with terminal:
        for step, accuracy in ((1, 0.2), (2, 0.6), (3, 0.5)):
            terminal.step(step, STEP | {"eval/gsm8k/accuracy": accuracy})
        terminal.phase("rollout", 64).advance(16, note="queue 4")
        text = screen(terminal)
    header = next(line for line in text.splitlines() if "grad norm" in line)
    assert " ".join(header.split()) == "step reward loss KL grad norm length tokens/s rollout s train s s/step"
    row = next(line for line in text.splitlines() if line.split()[0] == "3")
    assert row.split() == ["3", "0.412", "-0.0100", "0.0012", "0.800", "180", "5,120", "8.1", "3.9", "12.4"]
    assert "eval gsm8k: 50.0% (best 60.0% at step 2)" in text
    assert "rollout" in text and "16/64" in text and "queue 4" in text
    assert "3/12" in text and "about 1:52 left" in text


def test_only_the_last_steps_stay_and_parts_of_a_step_are_one_row() -> None:
    terminal, _ = live()
    with terminal:
        for step in range(1, 13):
            terminal.step(step, {"reward/mean": 0.1})
            terminal.step(step, {"train/kl": float("nan")})
        rows = [line.split() for line in screen(terminal).splitlines()[1:9]]
    assert rows == [[str(step), "0.100", "nan"] for step in range(5, 13)]


def test_80_columns_are_not_passed() -> None:
    terminal, _ = live(width=80)
    with terminal:
        terminal.step(1, STEP | {"rollout/logprob_diff_max": 1e-5, "time/sync": 0.4})
        text = screen(terminal, width=80)
    assert "logprob diff" not in text and "reward" in text and "s/step" in text
    assert "…" not in text


def test_phase_ends_with_its_block_but_stays_in_view_after_an_error() -> None:
    terminal, _ = live()
    with terminal:
        with terminal.phase("sync"):
            assert "sync" in screen(terminal)
        assert "sync" not in screen(terminal)
        with pytest.raises(OSError, match="lost"), terminal.phase("train", 8):
            raise OSError("lost")
        assert "train" in screen(terminal)


def test_cursor_comes_back_after_an_exception() -> None:
    terminal, out = live()
    with pytest.raises(RuntimeError), terminal:
        raise RuntimeError
    assert out.getvalue().rfind(SHOW_CURSOR) > out.getvalue().rfind(HIDE_CURSOR) >= 0


def test_summary_is_last_and_aligned() -> None:
    terminal, out = live()
    with terminal:
        terminal.step(1, STEP)
        terminal.summary({"reward": "0.1 → 0.4", "eval gsm8k": "20% → 43%"})
    last = out.getvalue().replace(SHOW_CURSOR, "").rstrip().splitlines()[-2:]
    assert last == ["reward      0.1 → 0.4", "eval gsm8k  20% → 43%"]


SCRIPT = """
import sys, time
from pentad.record.terminal import Terminal
with Terminal(3, "demo") as terminal:
    terminal.step(1, {"reward/mean": 0.5, "time/step": 1.0})
    terminal.phase("rollout", 8).advance(2)
    for _ in range(int(sys.argv[1])):
        terminal.message("waiting")
        time.sleep(0.05)
print("went on")
"""


def test_ctrl_c_on_a_real_terminal_gives_the_cursor_back() -> None:
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color"}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "600"], stdin=slave, stdout=slave, stderr=subprocess.DEVNULL, env=env
    )
    os.close(slave)
    output = b""
    try:
        deadline = time.monotonic() + 30
        while b"waiting" not in output and time.monotonic() < deadline:
            output += os.read(master, 65536)
        child.send_signal(signal.SIGINT)
        while True:
            try:
                if not (chunk := os.read(master, 65536)):
                    break
            except OSError:  # the other end is closed
                break
            output += chunk
    finally:
        child.kill()
        child.wait()
        os.close(master)
    text = output.decode()
    assert "rollout" in text and HIDE_CURSOR in text
    assert text.rfind(SHOW_CURSOR) > text.rfind(HIDE_CURSOR)
    assert "went on" not in text


def test_a_real_pipe_has_no_control_codes_even_with_forced_colour() -> None:
    env = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color", "GITHUB_ACTIONS": "true"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, "1"], capture_output=True, text=True, env=env, check=True)
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines() == ["demo: 3 steps", "step 1/3  reward 0.500  1.0 s", "waiting", "went on"]


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    mark = tmp_path / "done"
    script = SCRIPT.replace('print("went on")', f"open({str(mark)!r}, 'w').close()")
    child = subprocess.Popen([sys.executable, "-c", script, "20"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    child.wait(30)
    assert mark.exists()


def test_characters_that_the_encoding_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    terminal = Terminal(1, "demo", console=Console(file=io.TextIOWrapper(raw, encoding="ascii")))
    terminal.message("0.1 → 0.4")
    assert raw.getvalue() == b"0.1 ? 0.4\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36000, "10:00:00"), (float("nan"), "?")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
