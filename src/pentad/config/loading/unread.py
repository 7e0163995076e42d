"""Settings that a run would not read.

Invariant: what is named here is refused where a user set it, and left out of what `pentad import` writes.
"""

from collections.abc import Iterator

from pentad.config.loading.critic import unread_critic
from pentad.config.loading.evaluation import unread_by_evaluations
from pentad.config.loading.keys import known_keys
from pentad.config.schema.algorithms.base import RolloutAlgorithmSettings
from pentad.config.schema.reward import WITH_OPTIONS
from pentad.config.schema.run import RunSettings

# Their names, why, and what would make them be read.
type Unread = tuple[tuple[str, ...], str, str]


def unread_keys(settings: RunSettings) -> dict[str, tuple[str, str]]:
    """Settings that a run with these settings does not read: dotted name -> (why, what would make it be read)."""
    return {key: (why, use) for keys, why, use in _unread(settings) for key in reversed(keys)}


def _unread(settings: RunSettings) -> Iterator[Unread]:
    for keys, why, use in settings.algorithm.unread():
        yield tuple(f"algorithm.{key}" for key in keys), why, use
    yield from _of_other_algorithms(settings)
    yield from _data(settings)
    yield from _reward(settings)
    yield from _rollout(settings)
    yield from _training(settings)
    yield from unread_by_evaluations(settings)
    yield from unread_critic(settings)


def _of_other_algorithms(settings: RunSettings) -> Iterator[Unread]:
    algorithm = settings.algorithm
    if algorithm.trains_on != "rollouts":
        why, use = f"algorithm {algorithm.name} does not read it", "or set algorithm.name to grpo"
        yield (
            ("rollout.n", "rollout.temperature", "rollout.top_p", "reward.on_failure", "trainer.max_staleness"),
            why,
            use,
        )
        if not any(one.generates for one in settings.data.eval.values()):
            nothing = "no source of which is answered" if settings.data.eval else "which is empty"
            why, use = (
                f"algorithm {algorithm.name} generates only for data.eval, {nothing}",
                "or name a data.eval source",
            )
            yield _keys_of("rollout") + _keys_of("reward"), why, use
    why = f"algorithm {algorithm.name} does not read it"
    if algorithm.trains_on != "examples":
        yield ("data.response_column", "data.loss_on", "data.max_tokens"), why, "or set algorithm.name to sft"
    if algorithm.trains_on != "preferences":
        yield ("data.chosen_column", "data.rejected_column"), why, "or set algorithm.name to dpo"


def _data(settings: RunSettings) -> Iterator[Unread]:
    data = settings.data
    if len(data.sources) == 1:
        yield ("data.mix", "data.weights"), "data.train has one source", "or make data.train a list"
    elif data.weights is not None:
        yield ("data.mix",), "data.weights says how sources are mixed", "or remove data.weights"
    if not data.eval:
        why, use = "data.eval is empty, so nothing is evaluated", "or name a data.eval source"
        yield ("data.eval_limit", "rollout.eval_temperature", "rollout.eval_n"), why, use
    if data.template == "text":
        why, use = "data.template is text, so no chat template is applied", "or set data.template to chat"
        yield ("data.system_prompt", "model.chat_template"), why, use
    procedural = [source.startswith("reasoning_gym:") for source in data.all_sources]
    if all(procedural):
        keys = ("data.prompt_column", "data.messages_column", "data.response_column", "data.ground_truth_column")
        yield keys, "reasoning_gym sources have no columns", "or use a file"
    if not any(procedural):
        yield ("data.options",), "only reasoning_gym sources read it", "or use a reasoning_gym:TASK source"


def _reward(settings: RunSettings) -> Iterator[Unread]:
    if settings.reward.functions:
        yield ("reward.name", "reward.options"), "reward.functions names the rewards", "or remove reward.functions"
    elif ":" not in settings.reward.name and settings.reward.name not in WITH_OPTIONS:
        why, use = f"reward {settings.reward.name} does not read it", "or set reward.name to a module:function"
        yield ("reward.options",), why, use


def _rollout(settings: RunSettings) -> Iterator[Unread]:
    if settings.rollout.engine is None:
        why, use = "rollout.engine names no engine of yours", "or set rollout.engine to a module:Class"
        yield ("rollout.engine_options",), why, use
    else:
        why, use = "rollout.engine names an engine of yours, and vLLM is not started", "or remove rollout.engine"
        yield ("rollout.vllm",), why, use
    if not settings.trainer.max_staleness:
        why = "trainer.max_staleness is 0, so nothing is sampled while weights change"
        yield ("rollout.on_update",), why, "or set trainer.max_staleness to 1 or more"


def _training(settings: RunSettings) -> Iterator[Unread]:
    if isinstance(settings.algorithm, RolloutAlgorithmSettings):
        yield from _correction(settings, settings.algorithm)
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


def _correction(settings: RunSettings, algorithm: RolloutAlgorithmSettings) -> Iterator[Unread]:
    asked, name = algorithm.correction, "algorithm.correction"
    keys = tuple(f"{name}.{key}" for key in ("rule", "high", "low"))
    if algorithm.old_logprobs == "rollout":
        why = "algorithm.old_logprobs is rollout, so the ratio is to what was sampled and all weights would be 1"
        yield (f"{name}.level", *keys), why, "or set algorithm.old_logprobs to trainer"
    elif asked.level == "none" or (asked.level == "auto" and not settings.trainer.max_staleness):
        yield keys, "there are no importance weights", f"or set {name}.level to token or sequence"
    elif asked.rule == "truncate":
        yield (f"{name}.low",), f"{name}.rule is truncate", f"or set {name}.rule to mask"


def _keys_of(section: str) -> tuple[str, ...]:
    return tuple(name for name in known_keys() if name.startswith(section + "."))
