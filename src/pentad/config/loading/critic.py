"""Rules of the settings of the critic.

Invariant: a class of the user's is imported only where a setting of the critic depends on it.
"""

from collections.abc import Callable, Iterator

from pentad.config.loading.keys import known_keys
from pentad.config.schema.algorithms import CustomSettings
from pentad.config.schema.critic import CriticSettings
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError


def unread_critic(settings: RunSettings) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Settings that a run does not read: their names, why, and what would make them be read."""
    algorithm = settings.algorithm
    if isinstance(algorithm, CustomSettings) and settings.critic == CriticSettings():
        return
    if "critic" not in algorithm.roles:
        keys = tuple(name for name in known_keys() if name.startswith("critic."))
        yield keys, f"algorithm {algorithm.name} has no critic", "or take an algorithm that reads values"
    elif settings.critic.schedule.name == "constant":
        why, use = "a constant schedule does not read it", "or set critic.schedule.name to linear or cosine"
        yield ("critic.schedule.min_lr_ratio",), why, use


def check_critic(settings: RunSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    """What cannot work.

    Args:
        named: a dotted name with the place where it was set.
    """
    critic, trainer = settings.critic, settings.trainer
    if settings.model.lora.rank and "critic" in settings.algorithm.roles:
        yield UserError(
            f"{named('model.lora.rank')} is {settings.model.lora.rank}: adapters are not trained beside a critic "
            f"(algorithm {settings.algorithm.name})",
            "remove model.lora, or take an algorithm without a critic",
        )
    if critic == CriticSettings() or "critic" not in settings.algorithm.roles:
        return
    if critic.warmup_steps >= trainer.total_steps:
        yield UserError(
            f"{named('critic.warmup_steps')} is {critic.warmup_steps}, but the run has only {trainer.total_steps} "
            "steps: the policy would never be trained",
            f"set critic.warmup_steps to {trainer.total_steps - 1} or less",
        )
    steps = trainer.total_steps * settings.algorithm.updates
    if critic.schedule.warmup_steps > steps:
        yield UserError(
            f"{named('critic.schedule.warmup_steps')} is {critic.schedule.warmup_steps}, but the run has only "
            f"{steps} optimizer steps",
            f"set critic.schedule.warmup_steps to {steps} or less",
        )


def critic_notices(settings: RunSettings) -> Iterator[str]:
    """Settings that are legal and may not do what is meant."""
    critic = settings.critic
    if critic == CriticSettings() or "critic" not in settings.algorithm.roles:
        return
    if critic.optimizer.lr == 0:
        yield "critic.optimizer.lr = 0: no step changes the critic, whose values stay what they are"
