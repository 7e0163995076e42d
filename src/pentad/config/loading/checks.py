"""Rules that tie settings together: combinations that cannot work, and settings that nothing would read.

Invariant: a setting that a user wrote is read by the run, or refused here with the reason.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from pentad.config.loading.critic import check_critic, unread_critic
from pentad.config.loading.keys import known_keys
from pentad.config.loading.megatron import check_megatron
from pentad.config.schema.algorithms.base import RolloutAlgorithmSettings
from pentad.config.schema.data import is_eval_name
from pentad.config.schema.reward import WITH_OPTIONS
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError

# Words that a variable with a secret has in its name.
_SECRET = {"TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS"}


def check(settings: RunSettings, origins: Mapping[str, str]) -> list[UserError]:
    """Every broken rule. `origins` maps dotted names to `default`, `file:line` or `command line`."""

    def named(key: str) -> str:
        return f"{key} ({origins.get(key, 'default')})"

    return [*_unread_but_set(settings, origins), *_impossible(settings, named)]


def unread_keys(settings: RunSettings) -> dict[str, tuple[str, str]]:
    """Settings that a run with these settings does not read: dotted name -> (why, what would make it be read)."""
    return {key: (why, use) for keys, why, use in _unread(settings) for key in reversed(keys)}


def _unread(settings: RunSettings) -> Iterator[tuple[tuple[str, ...], str, str]]:
    algorithm, data = settings.algorithm, settings.data
    for keys, why, use in algorithm.unread():
        yield tuple(f"algorithm.{key}" for key in keys), why, use
    if algorithm.trains_on != "rollouts":
        why, use = f"algorithm {algorithm.name} does not read it", "or set algorithm.name to grpo"
        yield (
            ("rollout.n", "rollout.temperature", "rollout.top_p", "reward.on_failure", "trainer.max_staleness"),
            why,
            use,
        )
        if not data.eval:
            why, use = (
                f"algorithm {algorithm.name} generates only for data.eval, which is empty",
                "or name a data.eval source",
            )
            yield _keys_of("rollout") + _keys_of("reward"), why, use
    why = f"algorithm {algorithm.name} does not read it"
    if algorithm.trains_on != "examples":
        yield ("data.response_column", "data.loss_on", "data.max_tokens"), why, "or set algorithm.name to sft"
    if algorithm.trains_on != "preferences":
        yield ("data.chosen_column", "data.rejected_column"), why, "or set algorithm.name to dpo"
    if len(data.sources) == 1:
        yield ("data.mix", "data.weights"), "data.train has one source", "or make data.train a list"
    elif data.weights is not None:
        yield ("data.mix",), "data.weights says how sources are mixed", "or remove data.weights"
    if not data.eval:
        why, use = "data.eval is empty, so nothing is evaluated", "or name a data.eval source"
        yield ("data.eval_limit", "rollout.eval_temperature"), why, use
    if data.template == "text":
        why, use = "data.template is text, so no chat template is applied", "or set data.template to chat"
        yield ("data.system_prompt", "model.chat_template"), why, use
    procedural = [source.startswith("reasoning_gym:") for source in (*data.sources, *data.eval.values())]
    if all(procedural):
        keys = ("data.prompt_column", "data.messages_column", "data.response_column", "data.ground_truth_column")
        yield keys, "reasoning_gym sources have no columns", "or use a file"
    if not any(procedural):
        yield ("data.options",), "only reasoning_gym sources read it", "or use a reasoning_gym:TASK source"
    if settings.reward.functions:
        yield ("reward.name", "reward.options"), "reward.functions names the rewards", "or remove reward.functions"
    elif ":" not in settings.reward.name and settings.reward.name not in WITH_OPTIONS:
        why, use = f"reward {settings.reward.name} does not read it", "or set reward.name to a module:function"
        yield ("reward.options",), why, use
    if settings.rollout.engine is None:
        why, use = "rollout.engine names no engine of yours", "or set rollout.engine to a module:Class"
        yield ("rollout.engine_options",), why, use
    else:
        why, use = "rollout.engine names an engine of yours, and vLLM is not started", "or remove rollout.engine"
        yield ("rollout.vllm",), why, use
    if isinstance(algorithm, RolloutAlgorithmSettings):
        yield from _correction(settings, algorithm)
    if not settings.trainer.max_staleness:
        why = "trainer.max_staleness is 0, so nothing is sampled while weights change"
        yield ("rollout.on_update",), why, "or set trainer.max_staleness to 1 or more"
    if not settings.trainer.save_freq:
        why, use = "trainer.save_freq is 0, so no checkpoints are written", "or set trainer.save_freq"
        yield ("trainer.max_ckpt_to_keep", "trainer.keep_best", "trainer.max_restarts"), why, use
    if not settings.model.lora.rank:
        why, use = "model.lora.rank is 0, so there are no adapters", "or set model.lora.rank"
        yield tuple(key for key in _keys_of("model.lora") if key != "model.lora.rank"), why, use
    elif settings.model.lora.adapter is not None:
        why, use = "model.lora.adapter says what adapters begin with", "or remove model.lora.adapter"
        yield ("model.lora.init",), why, use
    if settings.trainer.schedule.name == "constant":
        why, use = "a constant schedule does not read it", "or set trainer.schedule.name to linear or cosine"
        yield ("trainer.schedule.min_lr_ratio",), why, use
    yield from unread_critic(settings)


def _correction(
    settings: RunSettings, algorithm: RolloutAlgorithmSettings
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    asked, name = algorithm.correction, "algorithm.correction"
    keys = tuple(f"{name}.{key}" for key in ("rule", "high", "low"))
    if algorithm.old_logprobs == "rollout":
        why = "algorithm.old_logprobs is rollout, so the ratio is to what was sampled and all weights would be 1"
        yield (f"{name}.level", *keys), why, "or set algorithm.old_logprobs to trainer"
    elif asked.level == "none" or (asked.level == "auto" and not settings.trainer.max_staleness):
        yield keys, "there are no importance weights", f"or set {name}.level to token or sequence"
    elif asked.rule == "truncate":
        yield (f"{name}.low",), f"{name}.rule is truncate", f"or set {name}.rule to mask"


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


def _keys_of(section: str) -> tuple[str, ...]:
    return tuple(name for name in known_keys() if name.startswith(section + "."))


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
    if not data.eval:
        for key, on in (("test_freq", trainer.test_freq > 0), ("val_before_train", trainer.val_before_train)):
            if on:
                yield UserError(
                    f"{named(f'trainer.{key}')} asks for evaluation, but data.eval is empty",
                    f"name a source, such as data.eval={{test: FILE}}, or remove trainer.{key}",
                )
    for name in data.eval:
        if not is_eval_name(name):
            yield UserError(
                f"{named(f'data.eval.{name}')}: {name!r} cannot name the metric eval/<name>/accuracy",
                "name it with letters, digits, '_', '-' and '.' only, beginning with a letter or digit",
            )
    best = trainer.keep_best
    if best is not None and not re.fullmatch(r"[a-z]+(/[A-Za-z0-9_.-]+)+", best):
        yield UserError(f"{named('trainer.keep_best')}: {best!r} is no metric", "see `pentad config --metrics`")
    elif best is not None and best.startswith("eval/") and best.split("/")[1] not in data.eval:
        yield UserError(
            f"{named('trainer.keep_best')} is {best}, but data.eval has no {best.split('/')[1]}",
            f"name one of {', '.join(data.eval)}" if data.eval else "name a data.eval source, or remove it",
        )
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
