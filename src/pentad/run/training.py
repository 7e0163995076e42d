"""The processes of a run: started, trained, and ended.

Invariant: when `train` is left, however, none of its processes is.
"""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from pentad.cluster.cluster import Cluster
from pentad.cluster.engines import Engines
from pentad.cluster.notices import fetch_notices
from pentad.cluster.trainers import Trainers
from pentad.loops.grpo import train_grpo
from pentad.loops.session import Session
from pentad.loops.sft import train_sft
from pentad.record.metrics import Sinks, open_sinks
from pentad.record.notices import NoticeBoard
from pentad.record.old_runs import KEPT
from pentad.record.outcome import Status
from pentad.record.run_dir import RunDir
from pentad.record.samples import SampleLog
from pentad.record.terminal import Terminal
from pentad.rewards.pool import RewardPool
from pentad.run.prepare import Prepared
from pentad.run.signals import StopSignals

_LOOPS = {"grpo": train_grpo, "sft": train_sft}


def train(
    prepared: Prepared,
    run_dir: RunDir,
    rewards: RewardPool | None,
    status: Status,
    signals: StopSignals,
) -> None:
    """Start the processes, run the algorithm's loop, and export the model.

    Args:
        run_dir: reserved; the run begins in it when its processes stand.
        status: kept up to date.
        signals: told when the run fails, before its processes are ended.

    Raises:
        UserError: something the user can put right.
        RunFailedError: a process failed.
    """
    settings, start = prepared.settings, time.monotonic()
    with ExitStack() as stack:
        terminal = stack.enter_context(Terminal(settings.trainer.total_steps, settings.experiment.name))
        terminal.message(f"starting {prepared.allocation} ({prepared.allocation.world_size} devices)")
        terminal.phase("start-up")
        cluster = stack.enter_context(Cluster(settings.ray, prepared.allocation))
        signals.install()
        try:
            trainers, engines = _start(prepared, cluster)
            # A run that could not be started has not touched the one that it would take the place of.
            run_dir.begin()
            for path in run_dir.removed:
                terminal.message(f"removed {path}: of earlier runs the last {KEPT} are kept")
            written = open_sinks(
                run_dir,
                settings.trainer.logger,
                console=terminal,
                name=settings.experiment.name,
                settings=settings.model_dump(mode="json"),
            )
            board = NoticeBoard(partial(fetch_notices, cluster.processes.actors), terminal.message)
            sinks = Sinks([written, board])
            stack.callback(sinks.close)
            samples = SampleLog(run_dir)
            stack.callback(samples.close)
            session = Session(prepared, run_dir, terminal, sinks, samples, trainers, engines, rewards, status)
            _LOOPS[settings.algorithm.name](session)
            if settings.trainer.export:
                status.phase = "export"
                trainers.export(prepared.directory, run_dir.model)
            signals.finished()
        except BaseException as error:
            signals.ending(signals.exit_code if isinstance(error, KeyboardInterrupt) else 1)
            raise
        terminal.summary(_summary(run_dir, settings.trainer.export, rewards, time.monotonic() - start))


def _start(prepared: Prepared, cluster: Cluster) -> tuple[Trainers, Engines | None]:
    settings = prepared.settings
    steps = settings.trainer.total_steps
    if settings.algorithm.name == "grpo":
        steps *= settings.algorithm.optimizer_steps
    cores = os.cpu_count() or 1
    ranks = prepared.allocation.trainer.layout.world
    trainers = Trainers(settings, prepared.directory, cluster, steps, threads=max(1, cores // ranks))
    engines = None
    if prepared.allocation.rollout is not None:
        engines = Engines(
            settings,
            prepared.directory,
            prepared.tokenizer_path,
            cluster,
            threads=max(1, cores // prepared.allocation.rollout.layout.world),
        )
    cluster.processes.started(settings.trainer.deadline_s)
    parts = [trainers] if engines is None else [trainers, engines]
    calls = [part.build() for part in parts]
    answers = cluster.processes.wait(calls, "start-up", settings.trainer.deadline_s)
    for part, answer in zip(parts, answers, strict=True):
        part.built(answer)
    return trainers, engines


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
