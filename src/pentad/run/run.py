"""One run from settings to model and report, begun anew or gone on with from a checkpoint.

Invariant: whatever ends the run, its processes end with it, what it wrote stays readable, and the first cause is what
the caller gets. What can be refused at once is refused before the slow imports; a refused run leaves nothing behind and
an earlier run where it was.
"""

from contextlib import ExitStack, suppress
from dataclasses import replace

from pentad.config.loading.load import LoadedSettings
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.record.machine import seconds_since_start
from pentad.record.outcome import RunFailedError, RunInterruptedError, Status
from pentad.record.run_dir import RunDir
from pentad.run.checks import Checked, check_run
from pentad.run.restarts import Restarts
from pentad.run.signals import StopSignals


def run(loaded: LoadedSettings, *, dry: bool = False) -> int:
    """Train as configured.

    Args:
        loaded: settings and where they came from.
        dry: check all that is checked before the processes start, say what the run would do, and end.

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
            checked = check_run(loaded, stack)
            if checked is None:
                return _finished(settings, dry=dry)
            if dry:
                _tell(checked)
            else:
                _train(checked, status, signals)
        except KeyboardInterrupt as error:
            if signals.received is None:
                raise
            facts = getattr(error, "facts", {})
            text = f"by {signals.received.name} during {signals.during}"
            raise RunInterruptedError(text, facts, signals.exit_code) from None
    return 0


def _tell(checked: Checked) -> None:
    """Say what the run would do."""
    from pentad.run.forecast import forecast

    print(f"\n{forecast(checked)}", flush=True)


def _train(checked: Checked, status: Status, signals: StopSignals) -> None:
    """Train, and write the report of whatever came of it."""
    from pentad.algorithms.make import make_algorithm
    from pentad.run.resume import load_resume
    from pentad.run.training import train

    prepared, resume, run_dir = checked.prepared, checked.resume, checked.run_dir
    restarts = Restarts(prepared.settings.trainer.max_restarts, run_dir)
    try:
        while True:
            signals.restarts = restarts.left
            try:
                train(prepared, run_dir, checked.rewards, status, signals, resume)
                break
            except RunFailedError as error:
                # The cause is kept in any case.
                if not restarts.take(error, status) or signals.received is not None:
                    raise
                status.step, status.phase = 0, "start-up"
                # One of the user's may have changed since the checkpoint.
                longest = prepared.settings.rollout.max_response_tokens
                prepared = replace(prepared, algorithm=make_algorithm(prepared.settings.algorithm, longest))
                checkpoint = restarts.checkpoint(None if resume is None else resume.checkpoint)
                after = "from the beginning" if checkpoint is None else f"from step {checkpoint.manifest.step}"
                print(f"failed: {error}\nstarting again {after} ({restarts.left} restarts left)", flush=True)
                resume = None if checkpoint is None else load_resume(checkpoint, prepared)
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


def _finished(settings: RunSettings, *, dry: bool) -> int:
    """Say that nothing is left to do; what a killed process has left undone is the report at most."""
    run_dir = RunDir(settings.experiment.run_dir)
    if not dry and not run_dir.report.exists() and run_dir.metrics.exists():
        _report(run_dir)
    print(
        f"{run_dir.path} holds a run that has finished its {settings.trainer.total_steps} steps; nothing is left to do"
        "\n  raise trainer.total_steps to go on, choose another experiment.name, or set experiment.overwrite=true to "
        "move the run aside and begin anew"
    )
    return 0


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
