"""A pool of worker processes that survives whatever they run.

Invariant: `run` gives one outcome for each job, in order, whatever users' code does: a call that hangs or ends its
process costs that one job. After `close`, which another thread than that of `run` may call, and after the death of this
process, no worker is left.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from pentad.workers.job import Failure, Job, Outcome, PreparationError
from pentad.workers.output import OutputLog, last_line
from pentad.workers.process import WorkerDied, WorkerProcess

MAX_RESTARTS = 2
_CLOSE_S = 30.0


class PoolClosedError(RuntimeError):
    """The pool was closed before all jobs had outcomes."""


@dataclass(frozen=True)
class Limits:
    """Longest times, in seconds, of one call and of one preparation."""

    call_s: float
    preparation_s: float


class WorkerPool:
    """Runs jobs in worker processes.

    Args:
        handler: as `pentad.workers.worker.main` takes it.
        workers: number of processes.
        limits: deadlines.
        noun: what is called, for messages.
        on_prepared: called with the key and the answer of every preparation.

    Attributes:
        log: takes what the workers print.
        closed: whether `close` was called.
    """

    def __init__(
        self, handler: str, workers: int, limits: Limits, noun: str, on_prepared: Callable[[str, Any], None]
    ) -> None:
        self.limits = limits
        self.noun = noun
        self.on_prepared = on_prepared
        self.workers: list[WorkerProcess] = []
        self.log = OutputLog()
        self._handler = handler
        self._lock = threading.RLock()
        self.closed = False
        try:
            for _ in range(workers):
                self.workers.append(WorkerProcess(handler))
        except BaseException:
            self.close()
            raise

    def run(
        self, jobs: Sequence[Job], on_outcome: Callable[[int, Outcome], Any] = lambda index, outcome: None
    ) -> list[Outcome]:
        """One outcome for each job, in order.

        Args:
            on_outcome: called with the index of a job and its outcome when it is known.

        Raises:
            UserError: a handler refused its request.
            PreparationError: a preparation ended its process or took too long.
            PoolClosedError: the pool is closed, or was closed meanwhile by another thread.
        """
        with self._lock:
            try:
                return _Round(self, jobs, on_outcome).run()
            finally:
                for worker in self.workers:
                    self.log.write(worker.output.take())

    def close(self) -> None:
        """End all workers, and with them a round of jobs that another thread runs; may be called again."""
        self.closed = True
        for worker in self.workers:
            worker.end()
        # That thread still uses the connections; it ends as soon as it sees that its workers did.
        held = self._lock.acquire(timeout=_CLOSE_S)
        for slot in range(len(self.workers)):
            self.replace(slot)
        self.workers = []
        if held:
            self._lock.release()

    def replace(self, slot: int) -> None:
        """End a worker, and start another in its place unless the pool is closed."""
        self.log.write(self.workers[slot].output.take())
        self.workers[slot].kill()
        if not self.closed:
            self.workers[slot] = WorkerProcess(self._handler)


@dataclass(frozen=True)
class _Task:
    """What a worker is busy with: a job, or the preparation for it."""

    index: int
    preparing: bool
    deadline: float


class _Round:
    """One call of `run`: deals jobs to idle workers, one at a time, until all have outcomes."""

    def __init__(self, pool: WorkerPool, jobs: Sequence[Job], on_outcome: Callable[[int, Outcome], Any]) -> None:
        self._pool = pool
        self._jobs = jobs
        self._on_outcome = on_outcome
        self._waiting = deque(range(len(jobs)))
        self._busy: dict[int, _Task] = {}
        self._restarts = [0] * len(jobs)
        self._outcomes: dict[int, Outcome] = {}

    def run(self) -> list[Outcome]:
        """Outcomes in the order of the jobs."""
        try:
            while len(self._outcomes) < len(self._jobs):
                self._check_open()
                self._deal()
                self._collect()
        except BaseException:
            # The answers on their way belong to this call; nobody must take them for those of the next.
            for slot in self._busy:
                self._pool.replace(slot)
            raise
        return [self._outcomes[index] for index in range(len(self._jobs))]

    def _check_open(self) -> None:
        if self._pool.closed:
            raise PoolClosedError("the pool is closed")

    def _deal(self) -> None:
        for slot in range(len(self._pool.workers)):
            while self._waiting and slot not in self._busy:
                self._start(slot, self._waiting.popleft())

    def _start(self, slot: int, index: int) -> None:
        """Have an idle worker do a job, or first the preparation for it."""
        worker, job = self._pool.workers[slot], self._jobs[index]
        preparing = job.preparation.key not in worker.prepared
        try:
            if preparing:
                worker.send(job.preparation.request)
            elif job.request is None:
                self._outcomes[index] = Outcome()
                return
            else:
                worker.send(job.request)
        except WorkerDied as death:
            self._check_open()
            # It died idle, from what an earlier call left behind; this job has not been tried yet.
            self._pool.replace(slot)
            self._restarts[index] += 1
            if self._restarts[index] > MAX_RESTARTS:
                self._fail(index, "crash", f"workers keep dying before they are called ({death})")
            else:
                self._waiting.appendleft(index)
            return
        limit = self._pool.limits.preparation_s if preparing else (job.call_s or self._pool.limits.call_s)
        self._busy[slot] = _Task(index, preparing, time.monotonic() + limit)

    def _collect(self) -> None:
        """Wait for the next answer or the next deadline, and settle what is due."""
        if not self._busy:
            return
        connections = {slot: self._pool.workers[slot].connection for slot in self._busy}
        nearest = min(task.deadline for task in self._busy.values())
        ready = wait(list(connections.values()), timeout=max(nearest - time.monotonic(), 0.0))
        now = time.monotonic()
        for slot, connection in connections.items():
            task = self._busy[slot]
            if connection in ready:
                self._settle(slot, task)
            elif now >= task.deadline:
                self._expire(slot, task)

    def _settle(self, slot: int, task: _Task) -> None:
        worker, preparation = self._pool.workers[slot], self._jobs[task.index].preparation
        try:
            answer = worker.receive()
        except WorkerDied as death:
            self._check_open()
            output = worker.output.take()
            self._pool.log.write(output)
            last = f"{death}; it last wrote: {line}" if (line := last_line(output)) else str(death)
            if task.preparing:
                raise PreparationError(preparation, "crash", last) from death
            self._replace_busy(slot)
            self._fail(task.index, "crash", f"{self._pool.noun} ended its process ({last})")
            return
        del self._busy[slot]
        if answer.refusal is not None:
            raise answer.refusal
        if answer.error:
            self._fail(task.index, "error", answer.error)
        elif task.preparing:
            worker.prepared.add(preparation.key)
            self._pool.on_prepared(preparation.key, answer.value)
            self._start(slot, task.index)
        else:
            self._finish(task.index, Outcome(answer.value))

    def _expire(self, slot: int, task: _Task) -> None:
        limits = self._pool.limits
        if task.preparing:
            preparation = self._jobs[task.index].preparation
            raise PreparationError(preparation, "timeout", f"longer than {limits.preparation_s:g} s")
        self._replace_busy(slot)
        self._fail(task.index, "timeout", f"{self._pool.noun} took longer than {limits.call_s:g} s")

    def _replace_busy(self, slot: int) -> None:
        del self._busy[slot]
        self._pool.replace(slot)

    def _fail(self, index: int, failure: Failure, message: str) -> None:
        self._finish(index, Outcome(None, failure, message))

    def _finish(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._on_outcome(index, outcome)
