"""The processes of a run: started, trained, and ended.

Invariant: when `train` is left, however, none of its processes is.
"""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial

import torch

from pentad.cluster.cluster import Cluster
from pentad.cluster.engines import Engines
from pentad.cluster.mailbox import Mailbox
from pentad.cluster.notices import fetch_notices
from pentad.cluster.object_store import ObjectStore
from pentad.cluster.publication import PublishedPolicy
from pentad.cluster.trainers import RoleTrainer, Trainers
from pentad.config.schema.algorithms.base import Role
from pentad.loops.journal import Journal
from pentad.loops.loop import Loop
from pentad.loops.roles import Trainer
from pentad.loops.saving import Saver
from pentad.loops.stopping import StoppedError
from pentad.record.checkpoints import Checkpoints
from pentad.record.distributions import DistributionLog
from pentad.record.lengths import write_lengths
from pentad.record.machine import seconds_since_start
from pentad.record.metrics import Sinks, open_sinks
from pentad.record.notices import NoticeBoard
from pentad.record.outcome import RunInterruptedError, Status
from pentad.record.run_dir import RunDir
from pentad.record.samples import SampleLog
from pentad.record.spans import SpansLog
from pentad.record.terminal import Terminal, duration
from pentad.record.warnings import WarningLog
from pentad.rewards.pools import RewardPools
from pentad.run.assemble import assemble
from pentad.run.begin import begin
from pentad.run.exporting import export
from pentad.run.prepare import Prepared
from pentad.run.resume import Resume, base_manifest
from pentad.run.savable import SavableTrainers
from pentad.run.signals import StopSignals
from pentad.run.summary import lengths
from pentad.run.transport import choose_transport


def train(
    prepared: Prepared,
    run_dir: RunDir,
    rewards: RewardPools | None,
    status: Status,
    signals: StopSignals,
    resume: Resume | None = None,
) -> None:
    """Start the processes, run the loop, and export the model.

    Args:
        run_dir: reserved; the run begins in it when its processes stand.
        status: kept up to date.
        signals: told when the run fails, before its processes are ended.
        resume: what the run goes on from; None to begin anew.

    Raises:
        UserError: something the user can put right.
        RunFailedError: a process failed.
        RunInterruptedError: a signal stopped the run; its `facts` say how to go on.
    """
    settings = prepared.settings
    with ExitStack() as stack:
        terminal = stack.enter_context(Terminal(settings.trainer.total_steps, settings.experiment.name))
        devices = f"{prepared.allocation.world_size} device{'s' if prepared.allocation.world_size > 1 else ''}"
        terminal.message(f"starting {prepared.allocation} ({devices})")
        roles = settings.algorithm.roles
        if len(prepared.allocation.homes(roles)) > 1:
            terminal.message(f"devices: {prepared.allocation.device_map(roles)}")
        terminal.phase("start-up")
        cluster = stack.enter_context(Cluster(settings.ray, prepared.allocation))
        signals.install()
        for note in cluster.notes:
            terminal.message(note)
        try:
            signals.run(_train(prepared, run_dir, rewards, status, terminal, cluster, signals, stack, resume))
        except StoppedError as stopped:
            signals.ending(signals.exit_code)
            raise _interrupted(stopped, run_dir, overwrite=settings.experiment.overwrite) from None
        except BaseException as error:
            signals.ending(signals.exit_code if isinstance(error, KeyboardInterrupt) else 1)
            raise
        seconds = seconds_since_start()
        run_dir.end("finished", seconds, settings.trainer.total_steps)
        terminal.summary(_summary(run_dir, settings.trainer.export, rewards, seconds))


async def _train(
    prepared: Prepared,
    run_dir: RunDir,
    rewards: RewardPools | None,
    status: Status,
    terminal: Terminal,
    cluster: Cluster,
    signals: StopSignals,
    stack: ExitStack,
    resume: Resume | None,
) -> None:
    settings = prepared.settings
    policy, trainers, engines = await _start(prepared, cluster, terminal)
    if settings.trainer.save_freq:
        await trainers.reserve_save()
    if resume is not None:
        await trainers.restore(resume.checkpoint.path.absolute(), resume.trainers)
    # A run that could not be started has not touched the one that it would take the place of.
    begin(run_dir, resume, terminal)
    write_lengths(run_dir, lengths(prepared))
    if rewards is not None:
        rewards.log_to(run_dir.rewards_log)
    written = open_sinks(
        run_dir,
        settings.trainer.logger,
        console=terminal,
        name=settings.experiment.name,
        settings=settings.model_dump(mode="json"),
        first_step=resume.step + 1 if resume is not None else 0 if run_dir.metrics.exists() else None,
    )
    sinks = Sinks([written, NoticeBoard(partial(fetch_notices, cluster.processes.actors), terminal.message)])
    stack.callback(sinks.close)
    samples = SampleLog(run_dir)
    stack.callback(samples.close)
    spans = SpansLog(run_dir)
    stack.callback(spans.close)
    warnings = WarningLog(run_dir)
    stack.callback(warnings.close)
    distributions = DistributionLog(run_dir)
    stack.callback(distributions.close)
    timeline = cluster.processes.timeline
    journal = Journal(terminal, sinks, samples, status, prepared.tokenizer, timeline, spans, warnings, distributions)
    loop = _make_loop(prepared, policy, trainers, engines, rewards, journal, run_dir, resume, stack)
    running = asyncio.get_running_loop()

    def stop() -> None:
        terminal.message("stopping: the last finished step is saved first; a second signal ends the run at once")
        loop.stop()

    with signals.asking(lambda: running.call_soon_threadsafe(stop)) if loop.saves else nullcontext():
        await loop.run()
    await _export(prepared, policy, trainers, run_dir, status, signals)
    signals.finished()


async def _export(
    prepared: Prepared,
    policy: RoleTrainer,
    trainers: Trainers,
    run_dir: RunDir,
    status: Status,
    signals: StopSignals,
) -> None:
    """Write what the settings ask for."""
    settings = prepared.settings
    exports = [(policy, prepared.directory, run_dir.model)] if settings.trainer.export else []
    if prepared.critic is not None and settings.critic.export:
        exports.append((trainers.role("critic"), prepared.critic, run_dir.critic))
    if exports and not exports[-1][2].exists():
        # A directory appears when it is whole; the ranks, and this task, may hear of it later.
        signals.finished(exports[-1][2].exists)
    for trained, source, target in exports:
        status.phase = "export"
        await export(trained, source, target)


def _make_loop(
    prepared: Prepared,
    policy: RoleTrainer,
    trainers: Trainers,
    engines: Engines | None,
    rewards: RewardPools | None,
    journal: Journal,
    run_dir: RunDir,
    resume: Resume | None,
    stack: ExitStack,
) -> Loop:
    """The loop, where a checkpoint says that it stands."""
    settings = prepared.settings
    roles: dict[Role, Trainer] = {role: trainers.role(role) for role in settings.algorithm.roles}
    roles["policy"] = policy
    dtype = torch.bfloat16 if torch.bfloat16 in (trainers.dtype, engines and engines.dtype) else torch.float32
    parts = assemble(prepared, policy, roles, engines, rewards, journal, dtype, stack)
    if settings.trainer.save_freq:
        saved = SavableTrainers(trainers, prepared.directory, prepared.critic)
        checkpoints = Checkpoints(run_dir.checkpoints)
        last = None if resume is None else resume.step
        manifest = base_manifest(prepared, resume)
        precision = "bf16" if trainers.dtype == torch.bfloat16 else "fp32"
        manifest = replace(manifest, model={**manifest.model, "dtype": precision})
        records = (run_dir.metrics, run_dir.samples)
        parts.saver = Saver(saved, checkpoints, manifest, settings.trainer, journal, last, records)
    if settings.trainer.hf_save_freq:
        exports = run_dir.exports
        parts.export = lambda step, replace: export(
            policy, prepared.directory, exports / f"step-{step:08d}", replace=replace
        )
    loop = Loop(parts)
    if resume is not None:
        loop.load_state_dict(resume.loop)
    return loop


def _interrupted(stopped: StoppedError, run_dir: RunDir, *, overwrite: bool) -> RunInterruptedError:
    if stopped.saved is None:
        facts = {"checkpoint": "none, as no step was finished"}
    else:
        path = run_dir.checkpoints / f"step-{stopped.saved:08d}"
        again = "start the same command again"
        if overwrite:
            again += ", without experiment.overwrite"
        facts = {"checkpoint": str(path), "to go on": again}
    return RunInterruptedError("", facts)


async def _start(
    prepared: Prepared, cluster: Cluster, terminal: Terminal
) -> tuple[RoleTrainer, Trainers, Engines | None]:
    """The policy, all models of the trainer, and the engines, as far as the run needs them."""
    settings, allocation = prepared.settings, prepared.allocation
    deadline_s = settings.trainer.deadline_s
    mailbox = cluster.spawn_one(Mailbox, "weight mailbox", deadline_s)
    store = ObjectStore(mailbox.actors[0], deadline_s)
    # Everywhere in one order, as ranks build the models one after the other.
    steps = {role: settings.optimizer_steps(role) for role in sorted(settings.algorithm.roles, reverse=True)}
    trainers = Trainers(settings, prepared.directory, cluster, steps, store, prepared.critic)
    engines = None
    if allocation.rollout is not None:
        engines = Engines(settings, prepared.directory, prepared.tokenizer_path, prepared.longest, cluster)
    await cluster.processes.started(deadline_s)
    await asyncio.gather(*(part.build() for part in (trainers, engines) if part is not None))
    policy = trainers.role("policy")
    if engines is not None:
        engines.revival.tell = terminal.message
        transport = choose_transport(
            prepared, store, engines, on_gpus=cluster.on_gpus, on_one_machine=cluster.on_one_machine, host=cluster.host
        )
        what, why = "weights", ""
        if settings.model.adapters is not None:
            alone = engines.features.adapters
            what = "adapters (and once the base)" if alone else "weights with the adapters merged into them"
            why = f": {reason}" if (reason := engines.features.merges_because) else ""
        terminal.message(f"{what} go to the engines by {transport.name}{why}")
        restart = settings.rollout.on_update == "restart"
        policy = PublishedPolicy(trainers, engines, transport, restart=restart)
    return policy, trainers, engines


def _summary(run_dir: RunDir, exported: bool, rewards: RewardPools | None, seconds: float) -> Mapping[str, str]:
    facts: dict[str, str] = {"time": f"{duration(seconds)} (from the command's start)"}
    failures = {kind: count for kind, count in (rewards.failures if rewards else {}).items() if count}
    if rewards and failures:
        facts["reward failures"] = ", ".join(f"{count} {kind}" for kind, count in failures.items())
        facts |= {f"first of {kind}": message for kind, message in rewards.first_messages.items()}
    if run_dir.rewards_log.exists():
        facts["reward output"] = str(run_dir.rewards_log)
    if exported:
        facts["model"] = str(run_dir.model)
    if run_dir.critic.exists():
        facts["critic"] = str(run_dir.critic)
    if run_dir.warnings.exists():
        facts["warnings"] = str(run_dir.warnings)
    facts["report"] = str(run_dir.report)
    return facts
