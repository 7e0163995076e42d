"""Rules that tie settings together: combinations that cannot work, and settings that nothing would read.

Invariant: a setting that a user wrote is read by the run, or refused here with the reason.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from pentad.config.loading.critic import check_critic
from pentad.config.loading.evaluation import check_evaluations
from pentad.config.loading.megatron import check_megatron
from pentad.config.loading.unread import unread_keys
from pentad.config.schema.algorithms.base import RolloutAlgorithmSettings
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError

# Words that a variable with a secret has in its name.
_SECRET = {"TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"}


def check(settings: RunSettings, origins: Mapping[str, str]) -> list[UserError]:
    """Every broken rule. `origins` maps dotted names to `default`, `file:line` or `command line`."""

    def named(key: str) -> str:
        return f"{key} ({origins.get(key, 'default')})"

    return [*_unread_but_set(settings, origins), *_impossible(settings, named)]


def _environment(settings: RunSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    for name, value in settings.ray.env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield UserError(
                f"{named(f'ray.env.{name}')}: {name!r} cannot name an environment variable",
                "use letters, digits and '_'",
            )
        elif name == "CUDA_VISIBLE_DEVICES":
            yield UserError(
                f"{named(f'ray.env.{name}')} is set by Ray for each process",
                "remove it; CUDA_VISIBLE_DEVICES where Ray is started limits the GPUs that are used",
            )
        elif value is not None and _SECRET & set(name.upper().split("_")):
            yield UserError(
                f"{named(f'ray.env.{name}')} looks like a secret; settings are kept in the run directory and shown",
                f"set ray.env.{name} to null, and export {name} where the run is started",
            )


def _unread_but_set(settings: RunSettings, origins: Mapping[str, str]) -> Iterator[UserError]:
    for key, (why, use) in unread_keys(settings).items():
        given = [name for name in origins if name == key or name.startswith(key + ".")]
        set_here = next((name for name in given if origins[name] != "default"), None)
        if set_here is not None:
            yield UserError(f"{key} ({origins[set_here]}) is set, but {why}", f"remove {key}, {use}")


def _impossible(settings: RunSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    algorithm, data, rollout, trainer = settings.algorithm, settings.data, settings.rollout, settings.trainer
    yield from _environment(settings, named)
    if algorithm.trains_on == "rollouts":
        yield from _rollouts(settings, named)
    elif trainer.tokens_per_microbatch <= data.max_prompt_tokens:
        yield UserError(
            f"{named('trainer.tokens_per_microbatch')} is {trainer.tokens_per_microbatch}, which leaves no room for a "
            f"response after a prompt of data.max_prompt_tokens = {data.max_prompt_tokens}",
            f"set trainer.tokens_per_microbatch above {data.max_prompt_tokens}, or lower data.max_prompt_tokens",
        )
    steps = settings.optimizer_steps("policy") or 0
    if trainer.schedule.warmup_steps > steps:
        yield UserError(
            f"{named('trainer.schedule.warmup_steps')} is {trainer.schedule.warmup_steps}, but the run has only "
            f"{steps} optimizer steps",
            f"set trainer.schedule.warmup_steps to {steps} or less",
        )
    yield from check_evaluations(settings, named)
    if len(set(trainer.logger)) < len(trainer.logger):
        yield UserError(f"{named('trainer.logger')} names a logger twice", "name each logger once")
    if any(not text for text in rollout.stop):
        yield UserError(f"{named('rollout.stop')} holds an empty text, which would end every response", "remove it")
    yield from check_megatron(settings.megatron, named)
    yield from check_critic(settings, named)


def _rollouts(settings: RunSettings, named: Callable[[str], str]) -> Iterator[UserError]:
    algorithm, data, rollout, trainer = settings.algorithm, settings.data, settings.rollout, settings.trainer
    yield from algorithm.impossible(rollout, named)
    if isinstance(algorithm, RolloutAlgorithmSettings):
        level, reads = algorithm.correction.level, "old_logprobs"
        asked = {"correction.level": level in ("token", "sequence"), reads: algorithm.old_logprobs != "trainer"}
        for key, on in asked.items():
            if on and reads not in algorithm.columns:
                yield UserError(
                    f"{named(f'algorithm.{key}')} is set, but algorithm {algorithm.name} reads no {reads}",
                    f"remove algorithm.{key}, or state {reads} in its columns",
                )
    steps, prompts = algorithm.updates, trainer.prompts_per_step
    # All samples of a prompt stay in one minibatch.
    if steps > prompts:
        yield UserError(
            f"{named('algorithm.optimizer_steps')} is {steps}, but a step has only {prompts} "
            f"{'prompt' if prompts == 1 else 'prompts'} to divide, {named('trainer.prompts_per_step')}",
            f"set algorithm.optimizer_steps to {prompts} or less, or trainer.prompts_per_step to {steps} or more",
        )
    longest = data.max_prompt_tokens + rollout.max_response_tokens
    if trainer.tokens_per_microbatch < longest:
        yield UserError(
            f"{named('trainer.tokens_per_microbatch')} is {trainer.tokens_per_microbatch}, but one sample may have "
            f"{longest} tokens (data.max_prompt_tokens + rollout.max_response_tokens)",
            f"set trainer.tokens_per_microbatch to {longest} or more",
        )
