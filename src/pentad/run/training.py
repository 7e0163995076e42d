"""The processes of a run: started, trained, and ended.

Invariant: when `train` is left, however, none of its processes is.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack

from pentad.cluster.cluster import Cluster
from pentad.cluster.engines import Engines
from pentad.cluster.mailbox import Mailbox
from pentad.cluster.object_store import ObjectStore, StoreTransport
from pentad.cluster.publication import PublishedPolicy
from pentad.cluster.trainers import RoleTrainer, Trainers
from pentad.config.schema.run import RunSettings
from pentad.loops.grpo import train_grpo
from pentad.loops.session import Session
from pentad.loops.sft import train_sft
from pentad.record.metrics import open_sinks
from pentad.record.outcome import Status
from pentad.record.run_dir import RunDir
from pentad.record.samples import SampleLog
from pentad.record.terminal import Terminal
from pentad.rewards.pool import RewardPool
from pentad.run.prepare import Prepared
from pentad.run.signals import StopSignals
from pentad.trainers.protocol import Role

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
        for note in cluster.notes:
            terminal.message(note)
        try:
            policy, reference, engines = _start(prepared, cluster)
            # A run that could not be started has not touched the one that it would take the place of.
            run_dir.begin()
            sinks = open_sinks(
                run_dir,
                settings.trainer.logger,
                console=terminal,
                name=settings.experiment.name,
                settings=settings.model_dump(mode="json"),
            )
            stack.callback(sinks.close)
            samples = SampleLog(run_dir)
            stack.callback(samples.close)
            session = Session(prepared, run_dir, terminal, sinks, samples, policy, reference, engines, rewards, status)
            _LOOPS[settings.algorithm.name](session)
            if settings.trainer.export:
                status.phase = "export"
                asyncio.run(policy.export(prepared.directory, run_dir.model))
        except BaseException as error:
            signals.ending(130 if isinstance(error, KeyboardInterrupt) else 1)
            raise
        terminal.summary(_summary(run_dir, settings.trainer.export, rewards, time.monotonic() - start))


def _start(prepared: Prepared, cluster: Cluster) -> tuple[RoleTrainer, RoleTrainer | None, Engines | None]:
    """The policy, the reference model and the engines, as far as the run needs them."""
    settings, allocation = prepared.settings, prepared.allocation
    deadline_s = settings.trainer.deadline_s
    mailbox = cluster.spawn_one(Mailbox, "weight mailbox", deadline_s)
    store = ObjectStore(mailbox.actors[0], deadline_s)
    trainers = Trainers(settings, prepared.directory, cluster, _roles(settings), store)
    engines = None
    if allocation.rollout is not None:
        engines = Engines(settings, prepared.directory, prepared.tokenizer_path, cluster)
    asyncio.run(_build(trainers, engines, cluster, deadline_s))
    policy = trainers.role("policy")
    if engines is not None:
        stages = allocation.trainer.layout.pipeline
        policy = PublishedPolicy(trainers, engines, StoreTransport(store, stages, len(engines.names), engines.dtype))
    return policy, trainers.role("reference") if "reference" in trainers.roles else None, engines


def _roles(settings: RunSettings) -> dict[Role, int | None]:
    """Optimizer steps of each model of the run; None for one that is never trained."""
    steps, grpo = settings.trainer.total_steps, settings.algorithm.name == "grpo"
    roles: dict[Role, int | None] = {"policy": steps * settings.algorithm.optimizer_steps if grpo else steps}
    if grpo and settings.algorithm.kl_coef > 0:
        roles["reference"] = None
    return roles


async def _build(trainers: Trainers, engines: Engines | None, cluster: Cluster, deadline_s: float) -> None:
    await cluster.processes.started(deadline_s)
    parts = [trainers] if engines is None else [trainers, engines]
    await asyncio.gather(*(part.build() for part in parts))


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
