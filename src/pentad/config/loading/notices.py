"""Settings that are legal and may not do what is meant; said where a run starts, once each.

Invariant: a notice names the settings, what follows from them, and what to write for the usual alternative. What
cannot work, or would not be read, is refused by `pentad.config.loading.checks` instead.
"""

from collections.abc import Iterator

from pentad.config.loading.critic import critic_notices
from pentad.config.loading.unread import unread_keys
from pentad.config.schema.algorithms.base import RolloutAlgorithmSettings
from pentad.config.schema.run import RunSettings


def notices(settings: RunSettings) -> list[str]:
    """One line for each doubtful combination of settings that the run reads."""
    return [*_rollout(settings), *_staleness(settings), *_training(settings), *critic_notices(settings)]


def _rollout(settings: RunSettings) -> Iterator[str]:
    rollout, unread = settings.rollout, unread_keys(settings)
    if rollout.top_p < 1 and "rollout.top_p" not in unread:
        yield (
            f"rollout.top_p = {rollout.top_p:g}: responses are sampled from the most likely tokens only, and trained "
            "on with log-probs of the whole distribution, so the probability ratio is not that of the tokens as they "
            "were sampled; rollout.top_p = 1 samples from what is trained"
        )
    dtypes = (rollout.dtype, settings.trainer.dtype)
    if set(dtypes) == {"fp32", "bf16"} and "rollout.dtype" not in unread:
        yield (
            f"rollout.dtype = {rollout.dtype}, trainer.dtype = {settings.trainer.dtype}: engine and trainer round "
            "differently, so responses are sampled from another distribution than the one that is trained; set both "
            "alike"
        )


def _staleness(settings: RunSettings) -> Iterator[str]:
    algorithm = settings.algorithm
    if (
        settings.trainer.max_staleness
        and isinstance(algorithm, RolloutAlgorithmSettings)
        and algorithm.correction.level == "none"
        and algorithm.old_logprobs == "trainer"
    ):
        yield (
            f"algorithm.correction.level = none, trainer.max_staleness = {settings.trainer.max_staleness}: samples of "
            "older weights are trained on as if the current ones had sampled them, so the gradient is biased; "
            "algorithm.correction.level = token weighs them"
        )


def _training(settings: RunSettings) -> Iterator[str]:
    trainer = settings.trainer
    if trainer.optimizer.lr == 0:
        yield "trainer.optimizer.lr = 0: no step changes the weights"
        return
    steps = trainer.total_steps
    if "algorithm.optimizer_steps" not in unread_keys(settings):
        steps *= getattr(settings.algorithm, "optimizer_steps", 1)
    warmup = trainer.schedule.warmup_steps
    if warmup and warmup == steps:
        yield (
            f"trainer.schedule.warmup_steps = {warmup} is the whole run: the learning rate only rises, and "
            f"trainer.schedule.name = {trainer.schedule.name} shapes nothing"
        )
