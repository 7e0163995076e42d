"""What a key of another system becomes here: rules as data, and the verdicts that they lead to.

Invariant: a rule has exactly one of `key` (taken), `fact` (taken together with other keys), `why` (no meaning here) and
`does` (not supported here).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

Verdict = Literal["taken", "no meaning here", "not supported here", "unknown", "in doubt", "not given"]

# Reasons that hold for algorithms without a critic only (see `finish`).
CRITIC = "without a critic it is not read"
CREDIT = "an advantage belongs to the whole response"

# What the value of a missing line or a `...` of a document is read as.
ELIDED = "..."


@dataclass(frozen=True)
class Nothing:
    """What a conversion returns for a value that needs no setting here; `why` says so."""

    why: str


@dataclass(frozen=True)
class Unsupported:
    """What a conversion returns for a value that cannot be had here.

    Attributes:
        does: what it would do.
        learns: whether leaving it out changes what is learnt.
    """

    does: str
    learns: bool = True


@dataclass(frozen=True)
class Rule:
    """What becomes of the keys that match `pattern`.

    Attributes:
        pattern: a regular expression over whole keys of the other system.
        key: the setting here; may refer to groups of the pattern.
        fact: the name of a fact (see `FACTS`), which gives a setting together with others.
        convert: the value there -> the value here, `Nothing` or `Unsupported`.
        note: what differs.
        why: why it has no meaning here.
        does: what it would do there, where that is not supported here.
        off: of an unsupported key, values with which it does nothing.
        learns: of an unsupported key, whether leaving it out changes what is learnt.
    """

    pattern: str
    key: str = ""
    fact: str = ""
    convert: Callable[[Any], Any] | None = None
    note: str = ""
    why: str = ""
    does: str = ""
    off: tuple[Any, ...] = ()
    learns: bool = True

    @property
    def target(self) -> str:
        """The setting that the key leads to, with groups of the pattern; empty if there is none."""
        return self.key or FACTS.get(self.fact, "")


@dataclass(frozen=True)
class Dialect:
    """The configuration language of one system.

    Attributes:
        name: as `--from` takes it.
        title: its name in messages.
        rules: the first that matches a whole key counts.
        signs: regular expressions of keys that no other system has.
        modules: beginnings of Python modules that its launch scripts run.
        defaults: keys that decide what is learnt -> their values where a file does not give them.
        colocated: whether its engines share the trainer's GPUs where nothing else is said.
        warmup_unit: what its scheduler counts: `step` (rollout batches) or `update` (optimizer steps).
        steps_unit: the same of the number of steps of a run.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    signs: tuple[str, ...]
    modules: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    colocated: bool = True
    warmup_unit: Literal["step", "update"] = "step"
    steps_unit: Literal["step", "update"] = "step"

    def rule(self, key: str) -> Rule | None:
        """The rule of a key, with the groups of its pattern put into `key` and `fact`."""
        return _find(self.rules, key)


def _find(rules: tuple[Rule, ...], key: str) -> Rule | None:
    for rule in rules:
        if match := _compiled(rule.pattern).fullmatch(key):
            if "\\" not in rule.key + rule.fact:
                return rule
            return Rule(
                rule.pattern,
                match.expand(rule.key),
                match.expand(rule.fact),
                rule.convert,
                rule.note,
                rule.why,
                rule.does,
                rule.off,
                rule.learns,
            )
    return None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def take(pattern: str, key: str, convert: Callable[[Any], Any] | None = None, note: str = "") -> Rule:
    """The key is a setting here, after a conversion."""
    return Rule(pattern, key=key, convert=convert, note=note)


def part(pattern: str, fact: str, convert: Callable[[Any], Any] | None = None, note: str = "") -> Rule:
    """The key is a fact, from which a setting follows together with others."""
    return Rule(pattern, fact=fact, convert=convert, note=note)


def nothing(pattern: str, why: str) -> Rule:
    """The key has no meaning here."""
    return Rule(pattern, why=why)


def lacking(pattern: str, does: str, off: tuple[Any, ...] = (None, False, 0), *, learns: bool = True) -> Rule:
    """What the key does is not supported here."""
    return Rule(pattern, does=does, off=off, learns=learns)


# Facts that an allocation is put together from, where the file has none.
LAYOUT_FACTS = (
    "nodes",
    "gpus_per_node",
    "gpus",
    "trainer_backend",
    "t",
    "p",
    "c",
    "e",
    "x",
    "v",
    "engine",
    "engine_t",
    "engine_d",
    "engine_p",
    "engine_e",
    "colocated",
)

# Facts -> the setting that follows from them.
FACTS: dict[str, str] = {
    **dict.fromkeys((*LAYOUT_FACTS, "allocation", "trainer_layout", "engine_layout"), "allocation"),
    **dict.fromkeys(("prompts", "samples", "device_samples", "accumulation"), "trainer.prompts_per_step"),
    **dict.fromkeys(("mini_prompts", "minibatches", "mini_samples", "reuse"), "algorithm.optimizer_steps"),
    **dict.fromkeys(("epochs", "steps"), "trainer.total_steps"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "trainer.schedule.warmup_steps"),
    **dict.fromkeys(("min_lr", "min_lr_ratio"), "trainer.schedule.min_lr_ratio"),
    **dict.fromkeys(("beta1", "beta2"), "trainer.optimizer.betas"),
    **dict.fromkeys(("micro_samples", "micro_tokens", "dynamic"), "trainer.tokens_per_microbatch"),
    "estimator": "algorithm.name",
    "ratio_level": "algorithm.name",
    "loss_type": "algorithm.name",
    "mean": "algorithm.loss_mean",
    "std": "algorithm.advantage_std",
    **dict.fromkeys(("clip", "clip_low", "cispo_low"), "algorithm.clip_low"),
    **dict.fromkeys(("clip_high", "cispo_high"), "algorithm.clip_high"),
    **dict.fromkeys(
        ("kl_loss", "kl_loss_coef", "kl_reward", "kl_reward_coef", "kl"),
        "algorithm.kl_coef",
    ),
    **dict.fromkeys(("kl_loss_type", "kl_reward_type"), "algorithm.kl_estimator"),
    **dict.fromkeys(("resume", "resume_path"), "trainer.resume_mode"),
    **dict.fromkeys(("name", "trial"), "experiment.name"),
    **dict.fromkeys(("reward_path", "reward_function"), "reward.name"),
    **dict.fromkeys(("train", "train_config", "train_split"), "data.train"),
    **dict.fromkeys(("eval", "eval_split"), "data.eval"),
    **dict.fromkeys(("truncation", "filter"), "data.too_long"),
    **dict.fromkeys(("eval_sampling", "eval_temperature"), "rollout.eval_temperature"),
    "eval_n": "rollout.eval_n",
    **dict.fromkeys(("staleness", "sync_interval", "sync_offset"), "trainer.max_staleness"),
    **dict.fromkeys(("use_lora", "lora_rank"), "model.lora.rank"),
    "lora_alpha": "model.lora.alpha",
    "lora_targets": "model.lora.targets",
    "save_epochs": "trainer.save_freq",
    "test_epochs": "trainer.test_freq",
    "max_prompt": "data.max_prompt_tokens",
    "max_response": "rollout.max_response_tokens",
    "max_length": "data.max_prompt_tokens",
    "vllm_share": "rollout.vllm.gpu_memory_utilization",
    **dict.fromkeys(("bypass", "recompute"), "algorithm.old_logprobs"),
    **dict.fromkeys(("weights_on", "weights_level", "weights_mode"), "algorithm.correction.level"),
    "weights_rule": "algorithm.correction.rule",
    **dict.fromkeys(("weights_high", "weights_high_sequence"), "algorithm.correction.high"),
    "weights_low": "algorithm.correction.low",
    **dict.fromkeys(("entropy_on", "entropy"), "algorithm.entropy_coef"),
    **dict.fromkeys(("dynamic_sampling", "dynamic_metric", "gen_prompts"), "algorithm.dynamic_sampling"),
    **dict.fromkeys(
        ("overlong_on", "overlong_len", "overlong_max", "reward_manager"),
        "algorithm.overlong_buffer",
    ),
    "overlong_factor": "algorithm.overlong_penalty",
    **{name: f"algorithm.{name}" for name in ("gamma", "gae_lambda", "value_clip", "kl_target")},
    "kl_adapted": "algorithm.kl_target",
    "kl_horizon": "algorithm.kl_gain",
    **dict.fromkeys(("batch_norm", "adv_mean", "adv_std"), "algorithm.normalize_advantages"),
    **dict.fromkeys(("advantage_fn", "norm_mean", "norm_leave_one_out"), "algorithm.name"),
    "norm_std": "algorithm.advantage_std",
    "areal_kl": "algorithm.kl_coef",
    "areal_kl_type": "algorithm.kl_estimator",
    **dict.fromkeys(("reward_scaling", "reward_bias", "reward_clip"), "algorithm.reward_clip"),
    "constant_length": "algorithm.loss_mean",
    **dict.fromkeys(("rewards", "reward_weights"), "reward.functions"),
    **dict.fromkeys(("critic_beta1", "critic_beta2"), "critic.optimizer.betas"),
    **dict.fromkeys(("critic_warmup", "critic_warmup_ratio"), "critic.schedule.warmup_steps"),
    "critic_min_lr": "critic.schedule.min_lr_ratio",
    **dict.fromkeys(("critic_mini_prompts", "critic_minibatches"), "algorithm.optimizer_steps"),
}
