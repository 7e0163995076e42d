"""What is legal and may not be meant is said where a run starts: of settings, of data, of prompts that are dropped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pentad.config.loading.notices import notices
from pentad.config.schema.run import RunSettings
from pentad.data.rows import PromptRow, Rows
from pentad.layout import parse_allocation
from pentad.run.sources import Sources


def settings_of(**sections: Mapping[str, Any] | str) -> RunSettings:
    base: dict[str, Any] = {
        "experiment": {"name": "demo"},
        "model": {"path": "some/model"},
        "data": {"train": "train.jsonl"},
        "trainer": {"total_steps": 10, "prompts_per_step": 2},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, Mapping) else values
    return RunSettings(**base)


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"rollout": {"top_p": 0.9}}, "rollout.top_p = 0.9: "),
        ({"rollout": {"dtype": "bf16"}, "trainer": {"dtype": "fp32"}}, "rollout.dtype = bf16, trainer.dtype = fp32: "),
        (
            {"trainer": {"max_staleness": 2}, "algorithm": {"correction": {"level": "none"}}},
            "algorithm.correction.level = none, trainer.max_staleness = 2: ",
        ),
        ({"trainer": {"optimizer": {"lr": 0.0}}}, "trainer.optimizer.lr = 0: "),
        ({"trainer": {"schedule": {"warmup_steps": 10}}}, "trainer.schedule.warmup_steps = 10 is the whole run"),
    ],
)
def test_doubtful_settings_are_said_once(sections: dict[str, Any], text: str) -> None:
    said = notices(settings_of(**sections))
    assert len(said) == 1
    assert said[0].startswith(text)


def test_usual_settings_are_not_spoken_of() -> None:
    assert notices(settings_of()) == []
    assert notices(settings_of(rollout={"dtype": "bf16"}, trainer={"schedule": {"warmup_steps": 9}})) == []
    assert notices(settings_of(algorithm={"name": "sft"}, rollout={"top_p": 0.9})) == [], "it is not read"


def rows_of(*prompts: str, held_out: int = 0) -> Rows:
    return Rows("file", tuple(PromptRow(f"file:{n}", prompt) for n, prompt in enumerate(prompts)), held_out)


def sources_of(train: Rows, allocation: str = "hf:d1|megatron:d1", **parts: Any) -> list[str]:
    evals = parts.pop("eval", {})
    settings = settings_of(allocation=allocation, **parts)
    return Sources(settings, parse_allocation(allocation), Path(), None, train, evals).notices


def test_doubtful_data_is_said() -> None:
    assert sources_of(rows_of("a", "b"), eval={"test": rows_of("c")}) == []
    assert sources_of(rows_of("a", "b", held_out=3)) == [
        "3 of 5 generated training problems are problems of an evaluation too; they are left out, and 2 are trained on"
    ]
    (said,) = sources_of(rows_of("a", "b"), eval={"test": rows_of("c", "a", "a")})
    assert said.startswith("data.eval.test: 2 of 3 prompts are prompts of data.train too")
    (said,) = sources_of(rows_of("a"))
    assert said.startswith("trainer.prompts_per_step = 2 is more than the rows of data.train (1)")


def test_a_check_of_copies_that_there_are_not_is_said() -> None:
    train = rows_of("a", "b")
    (said,) = sources_of(train, trainer={"check_replicas_freq": 5})
    assert said.startswith("trainer.check_replicas_freq = 5, but allocation hf:d1|megatron:d1 has one trainer rank")
    assert sources_of(train, "hf:d2|megatron:t2", trainer={"check_replicas_freq": 5}) == []
    apart = "hf:d1+megatron:d1+megatron[critic]:d2"
    assert sources_of(train, apart, algorithm={"name": "ppo"}, trainer={"check_replicas_freq": 5}) == []
    assert sources_of(train, trainer={"check_replicas_freq": 0}) == []


def test_sleep_of_engines_on_their_own_devices_is_said() -> None:
    sleeping = {"rollout": {"sleep": True}}
    assert sources_of(rows_of("a", "b"), **sleeping) == []
    (said,) = sources_of(rows_of("a", "b"), "hf:d1+megatron:d1", **sleeping)
    assert said.startswith("rollout.sleep = true, but in allocation hf:d1+megatron:d1 the engines share no device")
