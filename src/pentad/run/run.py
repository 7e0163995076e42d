"""One run from settings to model and report.

Invariant: whatever ends the run, its processes end with it, what it wrote stays readable, and the first cause is what
the caller gets. What can be refused at once is refused before the slow imports; a refused run leaves nothing behind and
an earlier run where it was.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pentad.config.loading.load import LoadedSettings
from pentad.config.loading.notices import notices
from pentad.config.loading.show import effective_yaml
from pentad.errors import UserError
from pentad.loops.scoring import reward_item
from pentad.record.metrics import check_loggers
from pentad.record.outcome import RunFailedError, RunInterruptedError, Status
from pentad.record.run_dir import RunDir
from pentad.rewards.pool import RewardPool
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
        RunInterruptedError: the run was interrupted, by SIGINT, SIGTERM or SIGHUP.
    """
    settings = loaded.settings
    print(f"{settings.experiment.name}: reading model and data", flush=True)
    status = Status(settings.trainer.total_steps)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        try:
            check_loggers(settings.trainer.logger)
            sources = find_sources(settings)
            _print_notices([*notices(settings), *sources.notices])
            rewards = _rewards(sources, stack)
            needed = _LOG_BYTES + (sources.model_bytes if settings.trainer.export else 0)
            run_dir = stack.enter_context(
                RunDir.reserve(
                    settings.experiment.run_dir, effective_yaml(loaded), settings.experiment.overwrite, needed
                )
            )
            _check_apart(sources, run_dir)
            _train(sources, run_dir, rewards, status, signals)
        except KeyboardInterrupt as error:
            if signals.received is None:
                raise
            facts = getattr(error, "facts", {})
            raise RunInterruptedError(f"by {signals.received.name} during {status}", facts) from None
    return 0


def _train(
    sources: Sources,
    run_dir: RunDir,
    rewards: RewardPool | None,
    status: Status,
    signals: StopSignals,
) -> None:
    """Train, and write the report of whatever came of it."""
    try:
        # torch, transformers and Ray: seconds.
        from pentad.run.prepare import prepare
        from pentad.run.training import train

        prepared = prepare(sources)
        _print_notices(prepared.notices)
        train(prepared, run_dir, rewards, status, signals)
    except BaseException as error:
        signals.ending(130 if isinstance(error, KeyboardInterrupt) else 1)
        facts = {"report": _late_report(run_dir)}
        if isinstance(error, KeyboardInterrupt):
            raise RunInterruptedError("", facts) from None
        if isinstance(error, RunFailedError):
            error.facts |= {"while": str(status), **facts}
        raise
    _report(run_dir)


def _print_notices(notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"note: {notice}", flush=True)


def _report(run_dir: RunDir) -> None:
    from pentad.record.report import write_report

    write_report(run_dir)


def _late_report(run_dir: RunDir) -> str:
    """Write the report of half a run; where that fails, say so, and leave the first cause its place."""
    # Before the run has begun, what is there is another's.
    if not (run_dir.begun and run_dir.metrics.exists() and run_dir.metrics.stat().st_size):
        return "none, as no step was finished"
    try:
        _report(run_dir)
    except (UserError, OSError) as error:
        return f"none: {error}"
    return str(run_dir.report)


def _check_apart(sources: Sources, run_dir: RunDir) -> None:
    """Refuse to move the model that is to be trained aside with the run that made it."""
    if not run_dir.moves_aside:
        return
    settings = sources.settings.model
    for name, path in (("path", sources.directory), ("tokenizer", settings.tokenizer)):
        if path is not None and Path(path).expanduser().resolve().is_relative_to(run_dir.path):
            raise UserError(
                f"model.{name} = {path} lies in the run directory {run_dir.path}, "
                "which experiment.overwrite=true moves aside",
                "choose another experiment.name or experiment.dir, or copy the model to a place of its own",
            )


def _rewards(sources: Sources, stack: ExitStack) -> RewardPool | None:
    """The reward processes, checked against every row; None where nothing is scored."""
    if not sources.scored:
        return None
    pool = stack.enter_context(RewardPool(sources.settings.reward))
    for rows in sources.scored:
        pool.check(reward_item(row, "") for row in rows)
    return pool
