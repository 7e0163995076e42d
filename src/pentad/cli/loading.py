"""Loading a configuration with the rules that need settings together with layouts or rewards."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pentad.config.loading.load import LoadedSettings, load_settings
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError
from pentad.layout import parse_allocation
from pentad.rewards.pool import check_rewards
from pentad.rewards.pools import check_own_rewards
from pentad.run.allocation import check_allocation


def load_run(path: Path, overrides: Sequence[str]) -> LoadedSettings:
    """Load settings and check their allocation. A file of another system is imported first.

    Raises:
        UserError: with everything that is wrong.
    """
    from pentad.cli.foreign import foreign_document

    return load_settings(path, overrides, CHECKS, foreign_document(path, overrides))


def check_reward(settings: RunSettings) -> Iterator[UserError]:
    """Rewards that cannot be right."""
    try:
        check_rewards(settings.reward)
    except UserError as problem:
        yield problem
    yield from check_own_rewards(settings)


CHECKS = (check_allocation, check_reward)


def describe_allocation(text: str) -> str:
    """The allocation in words: how many devices, and which of them each component has."""
    allocation = parse_allocation(text)
    parts = []
    for component in allocation.components:
        devices = allocation.devices(component)
        parts.append(f"{component} on {devices[0]}" + (f"-{devices[-1]}" if len(devices) > 1 else ""))
    return f"{allocation.world_size} device{'s' if allocation.world_size > 1 else ''}: " + ", ".join(parts)
