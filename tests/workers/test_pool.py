"""Worker processes by themselves: capacity, output, file descriptors. What rewards do to them: tests/rewards."""

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pentad.errors import UserError
from pentad.workers.capacity import check_capacity
from pentad.workers.job import Job, Outcome, Preparation, PreparationError
from pentad.workers.output import MAX_PIECE, OutputLog, WorkerOutput, last_line
from pentad.workers.pool import Limits, PoolClosedError, WorkerPool

READY = Preparation("ready", ("echo", None))


def pool_of(workers: int = 1, call_s: float = 30.0) -> WorkerPool:
    return WorkerPool("worker_handlers:obey", workers, Limits(call_s, 60.0), "the handler", lambda key, answer: None)


def jobs(*requests: tuple[str, Any]) -> list[Job]:
    return [Job(request, READY) for request in requests]


def test_outcomes_come_in_the_order_of_the_jobs() -> None:
    told: list[Any] = []
    with closing(pool_of(2)) as pool:
        outcomes = pool.run(
            jobs(*(("echo", number) for number in range(20))), lambda number, outcome: told.append(outcome.value)
        )
        assert outcomes == [Outcome(number) for number in range(20)]
        assert sorted(told) == list(range(20))
        with pytest.raises(UserError, match="not today"):
            pool.run(jobs(("refuse", "not today")))


def test_a_preparation_is_done_once_in_each_worker() -> None:
    prepared: list[tuple[str, Any]] = []
    pool = WorkerPool(
        "worker_handlers:obey", 2, Limits(30.0, 60.0), "it", lambda key, answer: prepared.append((key, answer))
    )
    with closing(pool):
        pool.run([Job(("echo", 1), Preparation("a", ("echo", "done"))) for _ in range(10)])
    assert prepared == [("a", "done")] * len(prepared)
    assert 1 <= len(prepared) <= 2


def test_a_preparation_that_fails_says_how() -> None:
    with closing(pool_of()) as pool:
        with pytest.raises(PreparationError, match=r"exit code 3; it last wrote: no licence") as caught:
            pool.run([Job(None, Preparation("dies", ("print and exit", "no licence")))])
        assert (caught.value.failure, caught.value.preparation.key) == ("crash", "dies")
        pool.limits = Limits(30.0, 0.2)
        with pytest.raises(PreparationError, match=r"longer than 0\.2 s") as caught:
            pool.run([Job(None, Preparation("hangs", ("sleep", 60)))])
        assert caught.value.failure == "timeout"


def test_what_workers_print_is_kept_from_the_terminal(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    with closing(pool_of()) as pool:
        pool.run(jobs(("print", "early"), ("print", "bird")))
        assert not file.exists()
        pool.log.open(file)
        assert file.read_text() == "early\nbird\n"
        outcomes = pool.run(jobs(("print", "later"), ("print and exit", "last words"), ("print", "again")))
        assert outcomes[1] == Outcome(
            None, "crash", "the handler ended its process (exit code 3; it last wrote: last words)"
        )
        assert file.read_text() == "early\nbird\nlater\nlast words\nagain\n"
    assert capfd.readouterr() == ("", "")


def test_closing_ends_the_jobs_of_another_thread(tmp_path: Path) -> None:
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    descriptors = psutil.Process().num_fds()
    raised: list[BaseException] = []
    begun = threading.Event()
    pool = pool_of(2, call_s=120.0)

    def run() -> None:
        try:
            pool.run(jobs(("echo", 1), *[("sleep", 120)] * 5), lambda number, outcome: begun.set())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    pool.close()
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [PoolClosedError]
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= children
    assert psutil.Process().num_fds() == descriptors
    with pytest.raises(PoolClosedError):
        pool.run(jobs(("echo", 1)))


def test_a_log_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    log = OutputLog()
    log.write(b"early")
    log.open(tmp_path / "none" / "worker.log")
    (tmp_path / "none").mkdir()
    log.write(b"late")
    assert not list((tmp_path / "none").iterdir())


def test_long_output_is_cut_in_the_middle() -> None:
    output = WorkerOutput()
    os.write(output.file, b"begin" + b"x" * (2 << 20) + b"end")
    piece = output.take()
    assert piece.startswith(b"begin") and piece.endswith(b"end")
    assert f"[{(2 << 20) + 8 - MAX_PIECE} bytes left out]".encode() in piece
    assert os.fstat(output.file).st_size == 0, "the disk is given back"
    os.write(output.file, b"more")
    assert (output.take(), output.take()) == (b"more", b"")
    output.close()
    output.close()
    assert output.take() == b""


def test_the_last_line_names_the_place_of_a_fault() -> None:
    assert last_line(b"") == last_line(b" \n") == ""
    assert last_line(b"one\ntwo\n\n") == "two"
    fault = b"""hello
Fatal Python error: Segmentation fault

Current thread 0x00 (most recent call first):
  File "mine.py", line 3 in score
  File "worker.py", line 9 in main

Extension modules: numpy (total: 1)
"""
    assert last_line(fault) == 'Fatal Python error: Segmentation fault, File "mine.py", line 3 in score'


@contextmanager
def many_open_files(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 100:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 100), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    try:
        yield
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_file_descriptors_above_1023_work() -> None:
    """As in a pool of hundreds of processes; select() takes none of them."""
    with many_open_files(1100), closing(pool_of(2)) as pool:
        assert pool.workers[0].connection.fileno() > 1023
        before = {worker.connection.fileno() for worker in pool.workers}
        assert [outcome.value for outcome in pool.run(jobs(("echo", 1), ("echo", 2), ("echo", 3)))] == [1, 2, 3]
        assert {worker.connection.fileno() for worker in pool.workers} == before, "no worker died"


def test_more_workers_than_the_machine_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(workers: int) -> pytest.ExceptionInfo[UserError]:
        with pytest.raises(UserError, match=f"^reward.workers={workers} asks for more processes") as caught:
            check_capacity(workers, "reward.workers")
        return caught

    check_capacity(4, "reward.workers")
    assert "GiB are available" in refuse(10**9).value.cause or "ulimit" in refuse(10**9).value.cause
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1 << 50}))
    resource.setrlimit(resource.RLIMIT_NOFILE, (556, hard))
    try:
        check_capacity(100, "reward.workers")
        error = refuse(101).value
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "may open 556 files (ulimit -n)" in error.cause
    assert error.fix.startswith("set reward.workers to 100 or less")
