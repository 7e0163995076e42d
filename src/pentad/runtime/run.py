"""One run from settings to model and report.

Invariant: whatever ends the run, its processes end with it, what it wrote stays readable, and the first cause is what
the caller gets.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pentad.config.load import LoadedSettings
from pentad.config.show import effective_yaml
from pentad.rewards.pool import RewardPool
from pentad.runtime.cluster import Cluster
from pentad.runtime.engines import Engines
from pentad.runtime.grpo import train_grpo
from pentad.runtime.metrics import open_sinks
from pentad.runtime.prepare import Prepared, prepare
from pentad.runtime.report import write_report
from pentad.runtime.run_dir import RunDir
from pentad.runtime.samples import SampleLog
from pentad.runtime.session import Session, reward_item
from pentad.runtime.sft import train_sft
from pentad.runtime.terminal import Terminal
from pentad.runtime.trainers import Trainers

_LOOPS = {"grpo": train_grpo, "sft": train_sft}
# Metrics, samples and TensorBoard events of a long run.
_LOG_BYTES = 64 << 20


def run(loaded: LoadedSettings) -> int:
    """Train as configured.

    Args:
        loaded: settings and where they came from.

    Returns:
        the exit code, 0.

    Raises:
        UserError: something the user can put right.
        RunFailedError: a process of the run failed.
        KeyboardInterrupt: the run was interrupted (also by SIGTERM).
    """
    settings = loaded.settings
    print(f"{settings.experiment.name}: reading model and data", flush=True)
    prepared = prepare(settings)
    needed = _LOG_BYTES + (prepared.model_bytes if settings.trainer.export else 0)
    with ExitStack() as stack:
        stack.enter_context(_terminate_as_interrupt())
        rewards = _rewards(prepared, stack)
        run_dir = stack.enter_context(
            RunDir.create(settings.experiment.run_dir, effective_yaml(loaded), settings.experiment.overwrite, needed)
        )
        try:
            _train(prepared, run_dir, rewards, loaded)
        finally:
            if run_dir.metrics.exists() and run_dir.metrics.stat().st_size:
                write_report(run_dir)
    return 0


def _train(prepared: Prepared, run_dir: RunDir, rewards: RewardPool | None, loaded: LoadedSettings) -> None:
    settings, start = prepared.settings, time.monotonic()
    with ExitStack() as stack:
        terminal = stack.enter_context(Terminal(settings.trainer.total_steps, settings.experiment.name))
        terminal.message(f"starting {prepared.allocation} ({prepared.allocation.world_size} devices)")
        cluster = stack.enter_context(Cluster(settings.ray, prepared.allocation))
        steps = settings.trainer.total_steps
        if settings.algorithm.name == "grpo":
            steps *= settings.algorithm.optimizer_steps
        cores = os.cpu_count() or 1
        ranks = prepared.allocation.trainer.layout.world
        trainers = Trainers(prepared, cluster, steps, threads=max(1, cores // ranks))
        engines = None
        if prepared.allocation.rollout is not None:
            engines = Engines(prepared, cluster, threads=max(1, cores // prepared.allocation.rollout.layout.world))
            engines.build()
        trainers.build()
        samples = SampleLog(run_dir)
        stack.callback(samples.close)
        sinks = open_sinks(
            run_dir,
            settings.trainer.logger,
            console=terminal,
            name=settings.experiment.name,
            settings=settings.model_dump(mode="json"),
        )
        stack.callback(sinks.close)
        session = Session(prepared, run_dir, terminal, sinks, samples, trainers, engines, rewards)
        _LOOPS[settings.algorithm.name](session)
        if settings.trainer.export:
            trainers.export(prepared.directory, run_dir.model)
        terminal.summary(_summary(run_dir, settings.trainer.export, rewards, time.monotonic() - start))


def _rewards(prepared: Prepared, stack: ExitStack) -> RewardPool | None:
    """The reward processes, checked against every row; None where nothing is scored."""
    scored = [*prepared.eval.values()]
    if prepared.settings.algorithm.name == "grpo":
        scored.append(prepared.train)  # type: ignore[arg-type]
    if not scored:
        return None
    pool = stack.enter_context(RewardPool(prepared.settings.reward))
    for prompts in scored:
        pool.check(reward_item(row, "") for row in prompts.rows)
    return pool


def _summary(run_dir: RunDir, exported: bool, rewards: RewardPool | None, seconds: float) -> Mapping[str, str]:
    facts: dict[str, str] = {"time": f"{seconds:.0f} s"}
    failures = {kind: count for kind, count in (rewards.failures if rewards else {}).items() if count}
    if rewards and failures:
        facts["reward failures"] = ", ".join(f"{count} {kind}" for kind, count in failures.items())
        facts |= {f"first of {kind}": message for kind, message in rewards.first_messages.items()}
    if exported:
        facts["model"] = str(run_dir.model)
    facts["report"] = str(run_dir.report)
    return facts


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: whoever called us looks after signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
