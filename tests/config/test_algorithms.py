"""Settings of algorithms: their defaults, and what is refused because nothing would read it or it cannot work."""

from pathlib import Path

import pytest

from pentad.config.loading.keys import known_keys
from pentad.config.loading.load import load_settings
from pentad.config.loading.show import effective_yaml
from pentad.config.schema.algorithms import ALGORITHMS, PolicyGradientSettings
from pentad.errors import UserError

BASE = """\
experiment: {name: demo}
model: {path: some/model}
data: {train: train.jsonl}
trainer: {total_steps: 10}
"""


def load(tmp_path: Path, *overrides: str):
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    return load_settings(path, overrides)


# (overrides, part of the cause, part of the fix)
REFUSED = {
    "not its own": (["algorithm.name=dapo", "algorithm.gamma=0.9"], "algorithm dapo does not read it", "ppo"),
    "not of examples": (["algorithm.name=dpo", "algorithm.kl_coef=0.1"], "algorithm dpo does not read it", "grpo"),
    "samples of pairs": (["algorithm.name=dpo", "rollout.n=4", "data.eval={a: b}"], "rollout.n", "remove rollout.n"),
    "response of pairs": (["algorithm.name=dpo", "data.response_column=a"], "dpo does not read it", "sft"),
    "pairs of rollouts": (["data.chosen_column=a"], "data.chosen_column", "set algorithm.name to dpo"),
    "unknown": (["algorithm.name=rloo", "algorithm.entropi_coef=1"], "unknown key", "algorithm.entropy_coef?"),
    "no such name": (["algorithm.name=drgrpo"], "expected one of grpo, dr_grpo", "write dr_grpo"),
    "constant of sft": (["algorithm.name=sft", "algorithm.loss_mean=constant"], "one of token, sequence, got", "token"),
    "target without penalty": (["algorithm.kl_target=0.1"], "algorithm.kl_coef is 0", "algorithm.kl_coef"),
    "gain without target": (["algorithm.kl_coef=0.1", "algorithm.kl_gain=0.2"], "kl_coef is fixed", "kl_target"),
    "penalty of no length": (["algorithm.overlong_penalty=2"], "algorithm.overlong_buffer is 0", "overlong_buffer"),
    "undone normalisation": (["algorithm.normalize_rewards=true"], "which undoes it", "algorithm.reward_clip"),
    "k1 in the loss": (["algorithm.kl_coef=0.1", "algorithm.kl_estimator=k1"], "zero on average", "k2 or k3"),
    "k1 in the loss of ppo": (["algorithm.name=ppo", "algorithm.kl_coef=0.1", "algorithm.kl_in=loss"], "is k1", "k2"),
    "one sample, rloo": (["algorithm.name=rloo", "rollout.n=1"], "a group of one sample has no advantage", "2 or more"),
    "one sample, baseline": (
        ["algorithm.name=reinforce_pp", "algorithm.group_baseline=true", "rollout.n=1"],
        "(algorithm reinforce_pp)",
        "2 or more",
    ),
    "one sample, dropped": (
        ["algorithm.name=ppo", "algorithm.dynamic_sampling=true", "rollout.n=1"],
        "every group would be left out",
        "algorithm.dynamic_sampling to false",
    ),
    "engine of pairs": (["algorithm.name=dpo", "reward.name=gsm8k"], "generates only for data.eval", "data.eval"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_cause_with_its_fix(tmp_path: Path, case: str) -> None:
    overrides, cause, fix = REFUSED[case]
    with pytest.raises(UserError) as error:
        load(tmp_path, *overrides)
    assert cause in error.value.cause and fix in error.value.fix + error.value.cause


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.name=reinforce_pp", "rollout.n=1"],
        ["algorithm.name=ppo", "rollout.n=1"],
        ["algorithm.normalize_rewards=true", "algorithm.reward_clip=2.0"],
        ["algorithm.name=dr_grpo", "algorithm.normalize_rewards=true"],
        ["algorithm.name=ppo", "algorithm.normalize_rewards=true"],
        ["algorithm.name=grpo", "algorithm.kl_coef=0.1", "algorithm.kl_in=reward", "algorithm.normalize_rewards=true"],
        ["algorithm.name=dpo", "data.chosen_column=a"],
    ],
)
def test_what_works_is_let_through(tmp_path: Path, overrides: list[str]) -> None:
    load(tmp_path, *overrides)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_shown_loads_again(tmp_path: Path, name: str) -> None:
    first = load(tmp_path, f"algorithm.name={name}")
    again = tmp_path / "again.yaml"
    again.write_text(effective_yaml(first))
    assert load_settings(again).settings == first.settings
    assert ("critic" in first.settings.algorithm.roles) is (name == "ppo")


def test_defaults_are_those_of_the_papers() -> None:
    made = {name: settings(name=name) for name, settings in ALGORITHMS.items()}
    assert (made["dapo"].clip_low, made["dapo"].clip_high, made["dapo"].loss_mean) == (0.2, 0.28, "token")
    assert made["dapo"].dynamic_sampling and made["dapo"].overlong_buffer == 0.2
    assert (made["gspo"].clip_low, made["gspo"].clip_high, made["gspo"].loss_mean) == (3e-4, 4e-4, "sequence")
    assert made["dr_grpo"].loss_mean == "constant" and made["reinforce_pp"].normalize_advantages
    for name in ("rloo", "reinforce_pp", "ppo"):
        assert (made[name].kl_in, made[name].kl_estimator) == ("reward", "k1")
    for settings in made.values():
        if isinstance(settings, PolicyGradientSettings):
            assert settings.columns - {"values"} == {"old_logprobs"}, "a reference is held without being asked for"
    key = known_keys()["algorithm.clip_high"]
    assert (key.default, key.of("dapo").default, key.of("rloo").default) == (0.2, 0.28, 0.2)
