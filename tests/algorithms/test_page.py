"""The pages on algorithms name all of them, and what they show works."""

import re
from pathlib import Path

import torch
import yaml

from pentad.algorithms.make import make_algorithm
from pentad.config.loading.checks import check
from pentad.config.schema.algorithms import ALGORITHMS, CustomSettings
from pentad.config.schema.run import RunSettings
from pentad.samples.batch import Batch

DOCS = Path(__file__).parents[2] / "docs"
PAGE, OWN = ((DOCS / name).read_text() for name in ("algorithms.md", "own-algorithm.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_every_algorithm_and_its_own_defaults_are_in_the_table():
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE))
    assert rows.keys() == ALGORITHMS.keys()
    for name, row in rows.items():
        settings = ALGORITHMS[name](name=name)
        for setting, value in re.findall(r"`(\w+): ([^`]+)`", row):
            assert getattr(settings, setting) == yaml.safe_load(value), f"{name}: {setting}"


def test_examples_are_possible():
    examples = [yaml.safe_load(text) for text in blocks(PAGE, "yaml")]
    assert len(examples) >= 3
    base = {
        "experiment": {"name": "x"},
        "model": {"path": "m"},
        "data": {"train": "t"},
        "trainer": {"total_steps": 1, "prompts_per_step": 512, "tokens_per_microbatch": 32768},
    }
    for example in examples:
        settings = RunSettings(**base, **example)
        given = {f"{section}.{key}": "the page" for section, keys in example.items() for key in keys}
        assert check(settings, given) == []


def test_the_class_of_ones_own_works(tmp_path: Path):
    (text,) = blocks(OWN, "python")
    (tmp_path / "median.py").write_text(text)
    settings = CustomSettings(name=f"{tmp_path}/median.py:Median", options={"clip_high": 0.3})
    algorithm = make_algorithm(settings)
    batch = Batch.from_sequences([(torch.ones(1).long(), torch.ones(2).long())] * 3)
    for name, value in {"rewards": torch.tensor([0.0, 1.0, 5.0]), "group_ids": torch.zeros(3).long()}.items():
        batch = batch.with_per_sequence(name, value)
    credited = algorithm.credit(batch)
    assert credited.per_token["advantages"].tolist() == [0, -1, -1, 0, 0, 0, 0, 4, 4]
    assert settings.columns >= algorithm.losses()["policy"].reads - {"advantages"}
