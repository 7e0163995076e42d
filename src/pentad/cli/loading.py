"""Loading a configuration with the rules that need both settings and layouts, which do not know each other."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pentad.config.loading.load import LoadedSettings, load_settings
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.layout.validate import check_supported
from pentad.rewards.load import check_name


def load_run(path: Path, overrides: Sequence[str]) -> LoadedSettings:
    """Load settings and check their allocation.

    Raises:
        UserError: with everything that is wrong.
    """
    return load_settings(path, overrides, checks=(check_allocation, check_reward))


def check_allocation(settings: RunSettings) -> Iterator[UserError]:
    """What is wrong with the allocation, by itself and for the algorithm."""
    try:
        allocation = parse_allocation(settings.allocation)
    except UserError as problem:
        yield problem
        return
    for problem in check_supported(allocation):
        yield UserError(f"allocation: {problem.cause}", problem.fix)
    if allocation.rollout is None:
        engine = f"hf:d{allocation.trainer.layout.world}"
        fix = f"write {engine}|{allocation.trainer} (same devices) or hf:d1+{allocation.trainer} (separate devices)"
        if settings.algorithm.trains_on == "rollouts":
            name = settings.algorithm.name
            yield UserError(f"allocation: algorithm {name} generates samples, but there is no rollout engine", fix)
        elif settings.data.eval:
            yield UserError(
                "allocation: data.eval is evaluated by generating, but there is no rollout engine",
                f"{fix}, or remove data.eval",
            )
    elif settings.algorithm.trains_on == "examples" and not settings.data.eval and not allocation.colocated:
        yield UserError(
            f"allocation: {allocation.rollout} would hold devices and do nothing: algorithm {settings.algorithm.name} "
            "generates only for data.eval, which is empty",
            f"write {allocation.trainer}, or name a data.eval source",
        )


def check_reward(settings: RunSettings) -> Iterator[UserError]:
    """A reward name that cannot be right. `pentad.config.loading.checks` finds options that a reward does not take."""
    try:
        check_name(settings.reward.name, {})
    except UserError as problem:
        yield problem


def describe_allocation(text: str) -> str:
    """The allocation in words: how many devices, and which of them each component has."""
    allocation = parse_allocation(text)
    parts = []
    for component in allocation.components:
        devices = allocation.devices(component)
        parts.append(f"{component} on {devices[0]}" + (f"-{devices[-1]}" if len(devices) > 1 else ""))
    return f"{allocation.world_size} device{'s' if allocation.world_size > 1 else ''}: " + ", ".join(parts)
