"""Everything that is refused before the processes of a run start: one function for `train` and `train --dry-run`.

Invariant: after `check_run` nothing is refused before the processes start, and nothing of the run directory has
changed: what was made there is removed again where the run does not begin. Nothing is left running but the processes of
the reward, which end with the caller's `ExitStack`.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pentad.config.loading.load import LoadedSettings
from pentad.config.loading.notices import notices
from pentad.config.loading.show import effective_yaml
from pentad.errors import UserError
from pentad.record.checkpoints import DIRECTORY, Checkpoints
from pentad.record.metrics import check_loggers
from pentad.record.run_dir import RunDir
from pentad.rewards.pools import RewardPools
from pentad.run.choice import begins_again, choose_checkpoint, is_finished, is_own
from pentad.run.sources import Sources, find_sources

if TYPE_CHECKING:
    from pentad.run.prepare import Prepared
    from pentad.run.resume import Resume

# Metrics, samples and TensorBoard events of a long run.
_LOG_BYTES = 64 << 20


@dataclass(frozen=True)
class Checked:
    """A run of which nothing more can be known to be wrong before its processes start.

    Attributes:
        settings_yaml: the effective settings.
        rewards: the reward's processes; None where nothing is scored.
        run_dir: reserved.
        resume: what the run goes on from; None to begin anew.
    """

    sources: Sources
    settings_yaml: str
    rewards: RewardPools | None
    run_dir: RunDir
    prepared: "Prepared"
    resume: "Resume | None"


def check_run(loaded: LoadedSettings, stack: ExitStack) -> Checked | None:
    """Read model and data, and refuse what can be refused; says which columns are taken, and what may not be meant.

    Args:
        stack: ends the reward's processes, and gives the run directory back.

    Returns:
        None where the run directory holds what this same command has finished.

    Raises:
        UserError: something the user can put right.
    """
    settings = loaded.settings
    check_loggers(settings.trainer.logger)
    sources = find_sources(settings)
    _print_lines(sources.said)
    _print_notices([*loaded.notices, *notices(settings), *sources.notices])
    directory = settings.experiment.run_dir
    yaml = effective_yaml(loaded)
    if is_finished(settings, yaml):
        return None
    found = Checkpoints(directory / DIRECTORY).steps()
    checkpoint = choose_checkpoint(settings, _print_notice)
    rewards = _open_rewards(sources, stack)
    _print_lines(rewards.said if rewards is not None else ())
    goes_on = is_own(checkpoint, directory) or begins_again(settings, yaml)
    needed = _LOG_BYTES + sources.written_bytes
    run_dir = stack.enter_context(
        RunDir.reserve(directory, yaml, settings.experiment.overwrite, needed, goes_on=goes_on)
    )
    if Checkpoints(directory / DIRECTORY).steps() != found:  # by a process that held the lock until now
        checkpoint = choose_checkpoint(settings, _print_notice)
    _check_apart(sources, run_dir)
    # torch, transformers and Ray: seconds.
    from pentad.cluster.address import check_reachable
    from pentad.run.prepare import prepare
    from pentad.run.resume import load_resume
    from pentad.run.summary import summary

    prepared = prepare(sources)
    _print_lines(summary(prepared))
    _print_notices(prepared.notices)
    resume = None if checkpoint is None else load_resume(checkpoint, prepared)
    check_reachable(settings.ray.address)
    return Checked(sources, yaml, rewards, run_dir, prepared, resume)


def _print_notice(notice: str) -> None:
    _print_notices([notice])


def _print_notices(notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"note: {notice}", flush=True)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _open_rewards(sources: Sources, stack: ExitStack) -> RewardPools | None:
    from pentad.run.rewards import open_rewards  # imports torch

    return open_rewards(sources.settings, sources.scored, sources.eval, stack)


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
