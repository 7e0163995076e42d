"""Settings of evaluations: the short and the long form, what is refused, and what is written."""

from pathlib import Path

import pytest

from pentad.config.loading.load import load_settings
from pentad.config.loading.show import effective_yaml
from pentad.config.schema.run import RunSettings
from pentad.errors import UserError

BASE = """\
experiment: {name: x}
model: {path: m}
data:
  train: t.jsonl
  eval:
    short: s.jsonl
    long: {source: l.jsonl, n: 4, temperature: 0.7, reward: exact}
trainer: {total_steps: 1}
"""


def load(tmp_path: Path, *overrides: str) -> RunSettings:
    file = tmp_path / "x.yaml"
    file.write_text(BASE)
    return load_settings(file, overrides).settings


def test_each_set_has_its_own_settings_or_those_of_the_run(tmp_path: Path) -> None:
    evals = load(tmp_path, "rollout.max_response_tokens=9", "data.eval.long.limit=3", "data.eval_limit=5").evals
    short, long = evals["short"], evals["long"]
    assert (short.source, short.n, short.temperature, short.max_response_tokens, short.limit) == ("s.jsonl", 1, 0, 9, 5)
    assert (long.source, long.n, long.temperature, long.max_response_tokens, long.limit) == ("l.jsonl", 4, 0.7, 9, 3)
    assert (short.reward, long.reward) == (None, "exact")


def test_the_command_line_reaches_into_the_short_form(tmp_path: Path) -> None:
    evals = load(tmp_path, "data.eval.short.n=2", "rollout.eval_temperature=1.0").evals
    assert (evals["short"].source, evals["short"].n, evals["short"].temperature) == ("s.jsonl", 2, 1.0)


def test_a_set_is_written_as_short_as_it_can_be(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(BASE)
    loaded = load_settings(file, ["data.eval.third={source: u.jsonl}"])
    text = effective_yaml(loaded)
    assert "    short: s.jsonl " in text and "    third: u.jsonl " in text
    assert "    long: {n: 4, reward: exact, source: l.jsonl, temperature: 0.7}" in text
    (tmp_path / "again.yaml").write_text(text)
    assert load_settings(tmp_path / "again.yaml").settings == loaded.settings
    assert loaded.settings.model_dump(mode="json")["data"]["eval"]["short"] == "s.jsonl"


@pytest.mark.parametrize(
    ("override", "cause", "fix"),
    [
        ("data.eval.long.temprature=1", "data.eval.long.temprature (command line): unknown key", "temperature?"),
        ("data.eval.long.n=0", "data.eval.long.n (command line): expected a whole number >= 1", "give a whole"),
        ("data.eval.long.n=two", "expected a whole number >= 1 or null, got two", "give a whole"),
        ("data.eval.new={n: 2}", "data.eval.new.source is required", "add data.eval.new.source"),
        ("data.eval.new=5", "data.eval.new (command line): expected text or a mapping", '"5" in quotes'),
        ("data.eval.long.temperature=0", "takes 4 samples of each question at temperature 0", "above 0"),
        ("data.eval.long.measure=loss", "algorithm grpo reads no responses", "to answers"),
        ("data.eval.short.reward_options={a: 1}", "has no reward of its own", "data.eval.short.reward"),
        ("trainer.keep_best=eval/long/pass_at_3", "which evaluation long does not measure", "eval/long/pass_at_4"),
        ("trainer.keep_best=eval/other/accuracy", "data.eval has no other", "short, long"),
    ],
)
def test_what_is_refused(tmp_path: Path, override: str, cause: str, fix: str) -> None:
    with pytest.raises(UserError) as refused:
        load(tmp_path, override)
    assert cause in str(refused.value.cause)
    assert fix in (str(refused.value.fix) if "problems" not in str(refused.value.cause) else str(refused.value.cause))


def test_loss_has_nothing_of_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.eval.long.n \(x.yaml:7\) is set, but with measure: loss nothing"):
        load(tmp_path, "algorithm.name=sft", "data.eval.long.measure=loss", "data.eval.short.measure=loss")


def test_what_no_evaluation_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout.eval_n .command line. is set, but each evaluation has its own n"):
        load(tmp_path, "data.eval.short.n=1", "rollout.eval_n=2")


def test_the_best_checkpoint_may_be_by_each_metric(tmp_path: Path) -> None:
    for name in ("eval/long/pass_at_2", "eval/long/mean_at_4", "eval/short/accuracy", "reward/mean"):
        assert load(tmp_path, f"trainer.keep_best={name}").trainer.keep_best == name
