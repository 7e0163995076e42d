import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pentad.config.schema.reward import RewardSettings
from pentad.errors import UserError
from pentad.rewards.pool import RewardPool
from pentad.rewards.types import RewardItem

MODULE = """
import os, subprocess, sys, time

def reward(prompt, response, ground_truth, bonus=0.0, begun="", **extra):
    if begun: open(begun, "w").write("")
    match response:
        case "hang":
            while True: pass
        case "sleep": time.sleep(60)
        case "brief":
            time.sleep(1)
            return 7.0
        case "child":
            child = subprocess.Popen(["sleep", "60"])
            if ground_truth: open(ground_truth, "w").write(str(child.pid))
            time.sleep(60)
        case "lock the interpreter":
            import ctypes; ctypes.PyDLL(None).sleep(60)
        case "_exit": os._exit(3)
        case "segfault":
            import ctypes; ctypes.string_at(0)
        case "sys.exit": sys.exit(1)
        case "raise": raise KeyError("oops")
        case "nan": return float("nan")
        case "inf": return {"score": float("inf")}
        case "none": return None
        case "string": return "1.0"
        case "no score": return {"points": 1}
        case "dict": return {"score": 0.5, "length": 3, "note": "fine", "bad": float("nan")}
        case "bool": return True
        case "numpy":
            import numpy; return numpy.float32(0.25)
        case "pid": return os.getpid()
        case "modules": return float("torch" in sys.modules or "transformers" in sys.modules)
    return len(response) + bonus

def needs_level(prompt, response, ground_truth, level): return level
def without_truth(prompt, response): return float(len(response))
def loud(prompt, response): print("scoring", response); return 1.0
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def pool_for(
    directory: Path, name: str = "mine:reward", workers: int = 2, timeout_s: float = 1.0, **more
) -> RewardPool:
    return RewardPool(RewardSettings(name=name, workers=workers, timeout_s=timeout_s, **more), directory)


def items(*responses: str) -> list[RewardItem]:
    return [RewardItem("prompt", response) for response in responses]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_results_come_in_the_order_of_the_items(directory: Path) -> None:
    with pool_for(directory, options={"bonus": 0.5}) as pool:
        responses = ["x" * n for n in range(50)]
        assert [r.score for r in pool.score(items(*responses))] == [n + 0.5 for n in range(50)]
        assert pool.score([]) == []
        assert pool.failures == {"timeouts": 0, "crashes": 0, "exceptions": 0, "bad_values": 0}
        assert pool.first_messages == {}


def test_kinds_of_values(directory: Path) -> None:
    with pool_for(directory) as pool:
        plain, boolean, numpy = pool.score(items("dict", "bool", "numpy"))
        assert (plain.score, dict(plain.metrics)) == (0.5, {"length": 3.0})
        assert (boolean.score, numpy.score) == (1.0, 0.25)


def test_each_failure_costs_its_own_sample_only(directory: Path) -> None:
    bad = {
        "hang": "timeout",
        "_exit": "crash",
        "segfault": "crash",
        "sys.exit": "exception",
        "raise": "exception",
        "nan": "bad_value",
        "inf": "bad_value",
        "none": "bad_value",
        "string": "bad_value",
        "no score": "bad_value",
    }
    responses = [response for name in bad for response in ("fine", name, "fine")]
    with pool_for(directory) as pool:
        before = children()
        results = pool.score(items(*responses))
        assert len(children()) == len(before)
        assert pool.failures == {"timeouts": 1, "crashes": 2, "exceptions": 2, "bad_values": 5}
        assert "reward.timeout_s=1" in pool.first_messages["timeouts"]
        assert "exit code 3" in pool.first_messages["crashes"] or "SIGSEGV" in pool.first_messages["crashes"]
        assert "mine.py:" in pool.first_messages["exceptions"]
        assert pool.first_messages["bad_values"].startswith("returned nan")
    for response, result in zip(responses, results, strict=True):
        if response == "fine":
            assert (result.score, result.failure) == (4.0, None)
        else:
            assert (result.score, result.failure) == (0.0, bad[response]), response


def test_the_first_failure_of_a_kind_is_told_when_it_happens(directory: Path) -> None:
    told: list[tuple[str, str, float]] = []
    with pool_for(directory, workers=1, timeout_s=1.0) as pool:
        began = time.monotonic()
        for _ in range(2):
            pool.score(
                items("nan", "raise", "none", "sleep"),
                lambda failure, message: told.append((failure, message, time.monotonic() - began)),
            )
    assert [failure for failure, _, _ in told] == ["bad_value", "exception", "timeout"]
    assert told[1][1].startswith("KeyError: 'oops' (")
    assert told[2][2] - told[0][2] > 0.9, "the first two were told before the third"


def test_only_results_that_all_failed_are_refused(directory: Path) -> None:
    with pool_for(directory, timeout_s=0.3) as pool:
        pool.check_results([])
        pool.check_results(pool.score(items("fine", "raise")))
        with pytest.raises(UserError, match=r"all 2 calls .* \(exception\): KeyError: 'oops'") as caught:
            pool.check_results(pool.score(items("raise", "sleep")))
        assert "reward.name=mine:reward" in caught.value.fix
        with pytest.raises(UserError) as caught:
            pool.check_results(pool.score(items("sleep")))
        assert "reward.timeout_s (now 0.3)" in caught.value.fix


def test_a_hang_is_ended_in_time_even_if_it_locks_the_interpreter(directory: Path) -> None:
    with pool_for(directory, timeout_s=1.0) as pool:
        started = time.monotonic()
        results = pool.score(items("lock the interpreter", "hang", "fine"))
        assert time.monotonic() - started < 30.0, "by themselves they take a minute"
        assert [r.failure for r in results] == ["timeout", "timeout", None]


def test_loading_does_not_count_as_the_time_of_a_call(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(1.5)\ndef f(prompt, response, ground_truth): return 1\n")
    with pool_for(tmp_path, "slow:f", timeout_s=1.0) as pool:
        assert [r.score for r in pool.score(items("a", "b", "c"))] == [1, 1, 1]


def test_what_a_hanging_call_started_is_ended_too(directory: Path) -> None:
    pid_file = directory / "pid"
    with pool_for(directory, workers=1, timeout_s=0.5) as pool:
        assert pool.score([RewardItem("", "child", str(pid_file))])[0].failure == "timeout"
        pid = int(pid_file.read_text())
        assert wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_worker_killed_between_calls_is_replaced(directory: Path) -> None:
    with pool_for(directory, workers=1) as pool:
        pid = int(pool.score(items("pid"))[0].score)
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        assert pool.score(items("fine"))[0].score == 4.0


def test_workers_do_not_import_torch(directory: Path) -> None:
    import torch  # noqa: F401  (here it is imported, there it must not be)

    with pool_for(directory) as pool:
        assert pool.score(items("modules"))[0].score == 0.0


def test_close_leaves_no_process_and_no_file_descriptor(directory: Path) -> None:
    before, descriptors = children(), psutil.Process().num_fds()
    pool = pool_for(directory, workers=3)
    pool.score(items("a", "_exit", "b"))
    assert len(children() - before) == 3
    pool.close()
    pool.close()
    assert children() == before
    assert psutil.Process().num_fds() == descriptors
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(items("a"))


def test_a_pool_outlives_the_thread_that_made_it(directory: Path) -> None:
    pools: list[RewardPool] = []
    thread = threading.Thread(target=lambda: pools.append(pool_for(directory)))
    thread.start()
    thread.join()
    with pools[0] as pool:
        time.sleep(0.2)
        pid = pool.score(items("pid"))[0].score
        assert pool.score(items("pid"))[0].score == pid
        assert pool.failures["crashes"] == 0


@pytest.mark.parametrize("response", ["sleep", "hang", "lock the interpreter", "child"])
def test_no_orphan_when_the_parent_is_killed(directory: Path, response: str) -> None:
    code = f"""
import sys
from pathlib import Path
from pentad.config.schema.reward import RewardSettings
from pentad.rewards.pool import RewardPool
from pentad.rewards.types import RewardItem
pool = RewardPool(RewardSettings(name="mine:reward", workers=2, timeout_s=60), Path({str(directory)!r}))
print("ready", flush=True)
pool.score([RewardItem("", {response!r}, extra={{"begun": {str(directory / "begun")!r}}})])
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    expected = 3 if response == "child" else 2
    processes = psutil.Process(parent.pid)
    assert wait_until(
        lambda: (directory / "begun").exists() and len(processes.children(recursive=True)) == expected, 30.0
    )
    workers = processes.children(recursive=True)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(workers, timeout=15)
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert left == []


def test_loading_errors_are_said_before_anything_is_scored(directory: Path) -> None:
    before = children()
    with pytest.raises(UserError, match="has no 'rewrad'"):
        pool_for(directory, "mine:rewrad")
    with pytest.raises(UserError, match="neither built in"):
        pool_for(directory, "gms8k")
    (directory / "dies.py").write_text("import os; os._exit(7)")
    with pytest.raises(UserError, match="importing it ended the process \\(exit code 7\\)"):
        pool_for(directory, "dies:f")
    assert children() == before


def caught_fix(pool: RewardPool, item: RewardItem) -> str:
    with pytest.raises(UserError) as caught:
        pool.check([item])
    return caught.value.fix


def test_data_without_ground_truth_is_scored_as_the_refusal_says(directory: Path) -> None:
    with pool_for(directory, "mine:without_truth", workers=1) as pool:
        pool.check([RewardItem("p", "", None)])
        assert [result.score for result in pool.score([RewardItem("p", "four", None)])] == [4.0]


def test_check_refuses_rows_that_could_not_be_scored(directory: Path) -> None:
    with pool_for(directory, "mine:needs_level") as pool:
        pool.check([RewardItem("", "", extra={"level": 1})])
        pool.check([RewardItem("", "", extra={"extra_info": {"level": 1}})])
        with pytest.raises(UserError, match="'level', which row 1") as caught:
            pool.check([RewardItem("", "", extra={"level": 1}), RewardItem("", "", extra={"lvl": 1})])
        assert caught.value.cause.endswith("its columns: lvl")
        assert caught.value.fix.startswith("did you mean lvl?")
        assert "reward.options.level" in caught.value.fix
        with pytest.raises(UserError) as caught:
            pool.check([RewardItem("", "", data_source="x", extra={"ability": 1, "extra_info": {"split": "train"}})])
        assert caught.value.cause.endswith("its columns: data_source, ability, extra_info (split)")
    with pool_for(directory, "auto", workers=1) as pool:
        pool.check([RewardItem("", "", "5", "openai/gsm8k")])
        with pytest.raises(UserError, match="row 0 of the data has no ground truth"):
            pool.check([RewardItem("", "", None, "openai/gsm8k")])
        assert "def reward(prompt, response)" in caught_fix(pool, RewardItem("", "", None, "openai/gsm8k"))
        with pytest.raises(UserError, match=r"^a\.jsonl:7 has no ground truth"):
            pool.check([RewardItem("", "", None, "openai/gsm8k", id="a.jsonl:7")])
        for truth in ({"value": "5"}, ["5"]):
            with pytest.raises(UserError, match=r"^a\.jsonl:7 has a ground truth of type"):
                pool.check([RewardItem("", "", truth, "openai/gsm8k", id="a.jsonl:7")])
        with pytest.raises(UserError, match="knows no reward"):
            pool.check([RewardItem("", "", "5", "mine")])


def test_what_a_reward_prints_is_kept_in_a_file(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pool_for(directory, "mine:loud", workers=1) as pool:
        pool.score(items("a"))
        pool.log_to(directory / "rewards.log")
        pool.score(items("b"))
    assert (directory / "rewards.log").read_text() == "scoring a\nscoring b\n"
    assert capfd.readouterr() == ("", "")


def test_auto_scores_a_mixture(directory: Path) -> None:
    pytest.importorskip("reasoning_gym")
    entry = {"question": "gcd of 4 and 6", "answer": "2", "metadata": {}}
    mixture = [
        RewardItem("", "#### 1,000", "1000", "openai/gsm8k"),
        RewardItem("", r"\boxed{\frac{2}{4}}", "0.5", "agentica-org/DeepScaleR-Preview-Dataset"),
        RewardItem("", "<answer>2</answer>", "2", "reasoning_gym/gcd", {"task": "gcd", "config": {}, "entry": entry}),
        RewardItem("", "#### 1", "1000", "openai/gsm8k"),
    ]
    with pool_for(directory, "auto", workers=1, timeout_s=2.0) as pool:
        assert [r.score for r in pool.score(mixture)] == [1.0, 1.0, 1.0, 0.0]
        assert pool.first_messages == {}


def test_an_interrupted_call_leaves_no_answers_for_the_next(directory: Path) -> None:
    begun = directory / "begun"

    def interrupt() -> None:
        if wait_until(begun.exists, 30.0):
            signal.raise_signal(signal.SIGINT)

    with pool_for(directory, workers=1, timeout_s=10.0) as pool:
        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            pool.score([RewardItem("", "brief", extra={"begun": str(begun)}), *items("fine") * 10])
        thread.join()
        assert [r.score for r in pool.score(items("x", "fine"))] == [1.0, 4.0]
