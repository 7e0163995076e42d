"""One run from settings to model and report, begun anew or gone on with from a checkpoint.

Invariant: whatever ends the run, its processes end with it, what it wrote stays readable, and the first cause is what
the caller gets. What can be refused at once is refused before the slow imports; a refused run leaves nothing behind and
an earlier run where it was.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from pentad.config.loading.load import LoadedSettings
from pentad.config.loading.notices import notices
from pentad.config.loading.show import effective_yaml
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.record.checkpoints import DIRECTORY, Checkpoint, Checkpoints
from pentad.record.machine import seconds_since_start
from pentad.record.metrics import check_loggers
from pentad.record.outcome import RunFailedError, RunInterruptedError, Status
from pentad.record.run_dir import RunDir
from pentad.rewards.pools import RewardPools
from pentad.run.choice import begins_again, choose_checkpoint, is_finished, is_own
from pentad.run.restarts import Restarts
from pentad.run.rewards import open_rewards
from pentad.run.signals import StopSignals
from pentad.run.sources import Sources, find_sources

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
        RunInterruptedError: the run was interrupted, by SIGINT, SIGTERM, SIGHUP or SIGUSR1.
    """
    settings = loaded.settings
    print(f"{settings.experiment.name}: reading model and data", flush=True)
    status = Status(settings.trainer.total_steps)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals(lambda: status))
        try:
            check_loggers(settings.trainer.logger)
            sources = find_sources(settings)
            _print_lines(sources.said)
            _print_notices([*loaded.notices, *notices(settings), *sources.notices])
            directory = settings.experiment.run_dir
            yaml = effective_yaml(loaded)
            if is_finished(settings, yaml):
                return _finished(settings)
            found = Checkpoints(directory / DIRECTORY).steps()
            checkpoint = choose_checkpoint(settings, _print_notice)
            rewards = open_rewards(sources.settings, sources.scored, sources.eval, stack)
            _print_lines(rewards.said if rewards is not None else ())
            goes_on = is_own(checkpoint, directory) or begins_again(settings, yaml)
            needed = _LOG_BYTES + sources.written_bytes
            run_dir = stack.enter_context(
                RunDir.reserve(directory, yaml, settings.experiment.overwrite, needed, goes_on=goes_on)
            )
            if Checkpoints(directory / DIRECTORY).steps() != found:  # by a process that held the lock until now
                checkpoint = choose_checkpoint(settings, _print_notice)
            _check_apart(sources, run_dir)
            _train(sources, run_dir, rewards, status, signals, checkpoint)
        except KeyboardInterrupt as error:
            if signals.received is None:
                raise
            facts = getattr(error, "facts", {})
            text = f"by {signals.received.name} during {signals.during}"
            raise RunInterruptedError(text, facts, signals.exit_code) from None
    return 0


def _train(
    sources: Sources,
    run_dir: RunDir,
    rewards: RewardPools | None,
    status: Status,
    signals: StopSignals,
    checkpoint: Checkpoint | None,
) -> None:
    """Train, and write the report of whatever came of it."""
    restarts = Restarts(sources.settings.trainer.max_restarts, run_dir)
    try:
        # torch, transformers and Ray: seconds.
        from pentad.algorithms.make import make_algorithm
        from pentad.run.prepare import prepare
        from pentad.run.resume import load_resume
        from pentad.run.summary import summary
        from pentad.run.training import train

        prepared = prepare(sources)
        _print_lines(summary(prepared))
        _print_notices(prepared.notices)
        while True:
            signals.restarts = restarts.left
            try:
                resume = None if checkpoint is None else load_resume(checkpoint, prepared)
                train(prepared, run_dir, rewards, status, signals, resume)
                break
            except RunFailedError as error:
                # The cause is kept in any case.
                if not restarts.take(error, status) or signals.received is not None:
                    raise
                status.step, status.phase = 0, "start-up"
                # One of the user's may have changed since the checkpoint.
                longest = prepared.settings.rollout.max_response_tokens
                prepared = replace(prepared, algorithm=make_algorithm(prepared.settings.algorithm, longest))
                checkpoint = restarts.checkpoint(checkpoint)
                after = "from the beginning" if checkpoint is None else f"from step {checkpoint.manifest.step}"
                print(f"failed: {error}\nstarting again {after} ({restarts.left} restarts left)", flush=True)
    except BaseException as error:
        signals.restarts = 0
        signals.ending(signals.exit_code if isinstance(error, KeyboardInterrupt) else 1)
        if run_dir.begun:
            with suppress(UserError, OSError):  # a full disk is not the first cause
                run_dir.end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", seconds_since_start())
        facts = {**getattr(error, "facts", {}), "report": _late_report(run_dir)}
        if isinstance(error, KeyboardInterrupt):
            raise RunInterruptedError("", facts) from None
        if isinstance(error, RunFailedError):
            error.facts |= {"while": str(status), **facts}
        raise
    _report(run_dir)


def _finished(settings: RunSettings) -> int:
    """Say that nothing is left to do; what a killed process has left undone is the report at most."""
    run_dir = RunDir(settings.experiment.run_dir)
    if not run_dir.report.exists() and run_dir.metrics.exists():
        _report(run_dir)
    print(
        f"{run_dir.path} holds a run that has finished its {settings.trainer.total_steps} steps; nothing is left to do"
        "\n  raise trainer.total_steps to go on, choose another experiment.name, or set experiment.overwrite=true to "
        "move the run aside and begin anew"
    )
    return 0


def _print_notice(notice: str) -> None:
    _print_notices([notice])


def _print_notices(notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"note: {notice}", flush=True)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _report(run_dir: RunDir) -> None:
    from pentad.record.report import write_report

    if run_dir.metrics.exists():  # a run that only had its export to do has none
        write_report(run_dir)


def _late_report(run_dir: RunDir) -> str:
    """Write the report of half a run; where that fails, say so, and leave the first cause its place."""
    # Before the run has begun, files here belong to an earlier run.
    if not (run_dir.begun and run_dir.metrics.exists() and run_dir.metrics.stat().st_size):
        return "none, as no step was finished"
    try:
        _report(run_dir)
    except (UserError, OSError) as error:
        return f"none: {error}"
    return str(run_dir.report)


def _check_apart(sources: Sources, run_dir: RunDir) -> None:
    """Refuse a run directory that holds what the run reads, where it is moved aside or is a directory of data.

    Raises:
        UserError: it does.
    """
    for setting, path in _inputs(sources):
        if run_dir.moves_aside and path.is_relative_to(run_dir.path):
            raise UserError(
                f"{setting} = {path} lies in the run directory {run_dir.path}, "
                "which experiment.overwrite=true moves aside",
                "choose another experiment.name or experiment.dir, or copy it to a place of its own",
            )
        if path.is_dir() and (run_dir.path == path or (setting.startswith("data.") and path in run_dir.path.parents)):
            raise UserError(
                f"the run directory {run_dir.path} lies in {setting} = {path}, where the run's files do not belong",
                "choose another experiment.name or experiment.dir",
            )


def _inputs(sources: Sources) -> Iterator[tuple[str, Path]]:
    """Files and directories that the run reads, by the settings that name them; absolute, without links."""
    settings = sources.settings
    module, is_own, _ = settings.reward.name.rpartition(":")
    file = module if module.endswith(".py") else f"{module.replace('.', '/')}.py"
    named: dict[str, str | Path | None] = {
        "model.path": sources.directory,
        "critic.model": None if settings.critic.model is None else sources.critic,
        "model.tokenizer": settings.model.tokenizer,
        "model.chat_template": settings.model.chat_template,
        **{f"data.train{f'[{i}]' if i else ''}": source for i, source in enumerate(settings.data.sources)},
        **{f"data.eval.{name}": one.source for name, one in settings.data.eval.items()},
        "reward.name": file if is_own else None,
    }
    for setting, value in named.items():
        if value is not None and (path := Path(value).expanduser()).exists():
            yield setting, path.resolve()
