"""Rules that tie the settings of evaluations together.

Invariant: as of all settings: what a user wrote is read by the run, or refused here with the reason.
"""

import re
from collections.abc import Callable, Iterator

from pentad.config.schema.evaluation import EvalSettings, is_eval_name
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError

# What only generated answers have.
_OF_ANSWERS = ("n", "temperature", "max_response_tokens", "reward", "reward_options")
_METRIC = re.compile(r"[a-z]+(/[A-Za-z0-9_.-]+)+")


def check_evaluations(settings: RunSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    """What cannot work of `data.eval`, and of what asks for evaluations.

    Args:
        named: a dotted name with the place where it was set.
    """
    data, trainer = settings.data, settings.trainer
    if not data.eval:
        for key, on in (("test_freq", trainer.test_freq > 0), ("val_before_train", trainer.val_before_train)):
            if on:
                yield UserError(
                    f"{named(f'trainer.{key}')} asks for evaluation, but data.eval is empty",
                    f"name a source, such as data.eval={{test: FILE}}, or remove trainer.{key}",
                )
    for name, one in settings.evals.items():
        yield from _one(settings, name, one, named)
    yield from _keep_best(settings, named)


def _one(settings: RunSettings, name: str, one: EvalSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    setting, algorithm = f"data.eval.{name}", settings.algorithm
    if not is_eval_name(name):
        yield UserError(
            f"{named(setting)}: {name!r} cannot name the metric eval/<name>/accuracy",
            "name it with letters, digits, '_', '-' and '.' only, beginning with a letter or digit",
        )
    if one.reward_options and one.reward is None:
        yield UserError(
            f"{setting}.reward_options ({_place(setting, named)}) is set, but the evaluation has no reward of its own",
            f"set {setting}.reward, or put them into reward.options",
        )
    if one.generates:
        if (one.n or 1) > 1 and not one.temperature:
            yield UserError(
                f"{named(setting)} takes {one.n} samples of each question at temperature 0, which are all the same",
                f"set {setting}.temperature (or rollout.eval_temperature) above 0, or take one sample",
            )
        return
    if algorithm.trains_on == "rollouts":
        yield UserError(
            f"{named(setting)}: measure is loss, but algorithm {algorithm.name} reads no responses",
            f"set {setting}.measure to answers, or algorithm.name to sft",
        )
    for field in _OF_ANSWERS:
        if field in settings.data.eval[name].model_fields_set:
            yield UserError(
                f"{setting}.{field} ({_place(setting, named)}) is set, but with measure: loss nothing is generated",
                f"remove {setting}.{field}, or set {setting}.measure to answers",
            )


def _place(setting: str, named: Callable[[str], str]) -> str:
    return named(setting).removeprefix(f"{setting} (").removesuffix(")")


def _keep_best(settings: RunSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    """Whether the metric that the best checkpoint is chosen by can be one that the run writes."""
    best, evals = settings.trainer.keep_best, settings.evals
    if best is None:
        return
    if not _METRIC.fullmatch(best):
        yield UserError(f"{named('trainer.keep_best')}: {best!r} is no metric", "see `pentad config --metrics`")
        return
    if not best.startswith("eval/"):
        return
    name, _, metric = best.removeprefix("eval/").partition("/")
    if name not in evals:
        yield UserError(
            f"{named('trainer.keep_best')} is {best}, but data.eval has no {name}",
            f"name one of {', '.join(evals)}" if evals else "name a data.eval source, or remove it",
        )
    elif metric not in (known := _metrics(settings, evals[name])):
        yield UserError(
            f"{named('trainer.keep_best')} is {best}, which evaluation {name} does not measure",
            f"name one of {', '.join(f'eval/{name}/{each}' for each in known)}",
        )


def _metrics(settings: RunSettings, one: EvalSettings) -> tuple[str, ...]:
    """The metrics of an evaluation that an algorithm has."""
    pairs = settings.algorithm.trains_on == "preferences"
    return tuple(each for each in one.metrics if one.generates or pairs == (each == "preference_accuracy"))


def unread_by_evaluations(settings: RunSettings) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Settings for all evaluations that each of them has of its own: their names, why, what would have them read."""
    given = settings.data.eval.values()
    if given and all(one.limit is not None for one in given):
        yield ("data.eval_limit",), "each evaluation has a limit of its own", "or remove those"
    if given and not any(one.generates for one in given):
        why, use = "no evaluation generates answers", "or set measure of one to answers"
        yield ("rollout.eval_temperature", "rollout.eval_n"), why, use
        return
    for field in ("temperature", "n"):
        if given and all(getattr(one, field) is not None for one in given if one.generates):
            yield (f"rollout.eval_{field}",), f"each evaluation has its own {field}", "or remove those"
