"""Metrics of a step: joined, timed, kept in a file, and sent to the places that show them.

Invariant: metrics.jsonl is written first and holds everything; each line is valid JSON; no value of a step is
ever replaced by another.
"""

import math
import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from pentad.config.schema.evaluation import is_eval_name
from pentad.extras import require
from pentad.record.jsonl import JsonLines
from pentad.record.run_dir import RunDir

_NAME = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)+")


def accuracy_name(eval_name: str) -> str:
    """`eval/<name>/accuracy` for a key of `data.eval`.

    Raises:
        ValueError: the name cannot be part of a metric's name; settings are checked for that when they are loaded.
    """
    if not is_eval_name(eval_name):
        raise ValueError(f"{eval_name!r} cannot be part of a metric's name")
    return f"eval/{eval_name}/accuracy"


def merge(*parts: Mapping[str, float]) -> dict[str, float]:
    """Join the metrics of a step's phases.

    Raises:
        ValueError: two phases report the same name.
    """
    merged: dict[str, float] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise ValueError(f"metrics reported twice: {', '.join(sorted(twice))}")
        merged |= part
    return merged


class Timer:
    """Times the phases of one step after another, by wall clock.

    CUDA works ahead of Python: a phase must end with its results on the host for its time to mean anything.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._spent: dict[str, float] = {}
        self._phase: str | None = None

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Add the time of the block to `time/<name>`. Phases do not nest: their times must sum to the step's."""
        if self._phase is not None:
            raise RuntimeError(f"phase {name!r} begins within phase {self._phase!r}")
        self._phase, start = name, self._clock()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + self._clock() - start
            self._phase = None

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` of each phase and `time/step` since the last call (or the beginning); starts the next step."""
        now = self._clock()
        times = {f"time/{name}": spent for name, spent in self._spent.items()} | {"time/step": now - self._start}
        self._start, self._spent = now, {}
        return times


class Sink(Protocol):
    """A place that metrics go to."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Appends metrics to metrics.jsonl, one line a call. A value that is not finite is written as null."""

    def __init__(self, run_dir: RunDir) -> None:
        self._lines = JsonLines(run_dir.metrics, run_dir)
        self._step = -1
        self._names: set[str] = set()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append `{"step": step, **metrics}`. A step may be written in several parts with different names.

        Raises:
            UserError: the disk is full.
            ValueError: a bad name, a value that is no number, a step that went back, a name written twice.
        """
        if step < max(self._step, 0):
            raise ValueError(f"metrics of step {step} after those of step {self._step}")
        names = self._names if step == self._step else set()
        if twice := names & metrics.keys():
            raise ValueError(f"metrics of step {step} written twice: {', '.join(sorted(twice))}")
        self._lines.append({"step": step, **{name: _json_number(name, value) for name, value in metrics.items()}})
        self._step, self._names = step, names | metrics.keys()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class Sinks:
    """Several sinks as one, in order; closing closes all of them, even if one fails."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write to each sink in turn."""
        for sink in self._sinks:
            sink.write(step, metrics)

    def close(self) -> None:
        """Close the sinks, the last first. Of several errors the last one is raised, the others are its context."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


def check_loggers(loggers: Sequence[str]) -> None:
    """Whether what `trainer.logger` names is installed; nothing is imported.

    Raises:
        UserError: it is not.
    """
    for name in ("wandb", "mlflow", "swanlab"):
        if name in loggers:
            require(name, name, "trainer.logger", f"remove {name} from trainer.logger")


def open_sinks(
    run_dir: RunDir,
    loggers: Sequence[str],
    *,
    console: Sink | None,
    name: str,
    settings: Mapping[str, object],
    first_step: int | None = None,
) -> Sinks:
    """The sinks that `trainer.logger` names, after metrics.jsonl, which is always written.

    Args:
        run_dir: a created run directory.
        loggers: of `console`, `tensorboard`, `wandb`, `mlflow`, `swanlab`.
        console: shows metrics where `console` is among the loggers (a `terminal.Terminal`).
        name: the experiment's name, for wandb and the like.
        settings: the effective settings as plain data, for wandb and the like.
        first_step: of a run that goes on, whose rows of this step and later ones no longer count; None: it begins.

    Raises:
        UserError: wandb, or the like, is asked for and not installed or not usable.
        ValueError: an unknown logger.
    """
    sinks: list[Sink] = [MetricsLog(run_dir)]
    for logger in dict.fromkeys(loggers):
        if logger == "console":
            if console is not None:
                sinks.append(console)
        elif logger == "tensorboard":
            from pentad.record.tensorboard import TensorBoard  # imports torch and tensorboard: seconds

            sinks.append(TensorBoard(run_dir, first_step))
        elif logger == "wandb":
            from pentad.record.wandb import Wandb

            sinks.append(Wandb(run_dir, name=name, settings=settings))
        elif logger == "mlflow":
            from pentad.record.mlflow import MLflow

            sinks.append(MLflow(run_dir, name=name, settings=settings))
        elif logger == "swanlab":
            from pentad.record.swanlab import SwanLab

            sinks.append(SwanLab(run_dir, name=name, settings=settings))
        else:
            raise ValueError(f"unknown logger {logger!r}")
    return Sinks(sinks)


def _json_number(name: str, value: float) -> float | int | None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"metric name {name!r} is not of the form group/name")
    if isinstance(value, int):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric {name} is no number: {value!r}") from error
    return number if math.isfinite(number) else None
