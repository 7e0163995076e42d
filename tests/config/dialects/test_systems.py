"""Configurations of each system as they are written in public: what they become, and how that was reckoned."""

import re
from pathlib import Path
from typing import Any

import pytest

from pentad.config.dialects.catalog import DIALECTS, is_own, recognise
from pentad.config.dialects.facts import exists
from pentad.config.dialects.importing import Asked, Imported, import_file
from pentad.config.dialects.rules import FACTS
from pentad.config.dialects.values import TO_VLLM
from pentad.config.dialects.write import as_json, as_table, as_yaml
from pentad.config.loading.load import load_settings
from pentad.config.loading.show import plain, value_of
from pentad.engines.vllm.arguments import PASSED
from pentad.errors import UserError

FOLDER = Path(__file__).parent
CONFIGS = sorted([*(FOLDER / "configs").iterdir(), *(FOLDER / "seeds").iterdir()])

EXPECTED: dict[str, dict[str, Any]] = {
    "verl_dapo.sh": {
        "allocation": "vllm:d4t4|megatron:d4c4",
        "trainer.schedule.warmup_steps": 160,  # 10 steps of 16 optimizer steps
        "trainer.tokens_per_microbatch": 10240,
        "data.eval": {"aime-2024": "data/aime-2024.parquet", "math500": "data/math500/test.parquet"},
        "data.too_long": "drop",
        "algorithm.optimizer_steps": 16,
        "algorithm.clip_high": 0.28,
        "reward.name": "rewards/dapo.py:compute_score",
        "trainer.total_steps": 200,
    },
    "verl_kl.yaml": {
        "allocation": "hf:d8|megatron:d4t2e4",
        "algorithm.kl_coef": 0.01,
        "algorithm.kl_estimator": "k3",
        "algorithm.loss_mean": "sequence",
        "algorithm.advantage_std": False,
        "trainer.schedule.warmup_steps": 10,
        "trainer.schedule.min_lr_ratio": 0.1,
        "trainer.save_freq": 0,
        "model.lora.rank": 16,
        "rollout.max_response_tokens": 256,
        "megatron.transformer.recompute_modules": ["core_attn"],
    },
    "areal_lora.yaml": {
        "allocation": "vllm:d1t2+megatron:(attn:d1p6t1c1|ffn:d1p6t1e1)",
        "model.lora.targets": "all-linear",
        "trainer.schedule.warmup_steps": 10,  # a tenth of 50 steps, of two optimizer steps each
        "trainer.optimizer.betas": [0.9, 0.999],
        "data.eval": {"gsm8k": "hf:openai/gsm8k"},
        "algorithm.clip_high": 0.4,
    },
    "skyrl_grpo.sh": {
        "allocation": "vllm:d4|megatron:d2t2",
        "trainer.schedule.warmup_steps": 7,  # SkyRL counts optimizer steps
        "trainer.total_steps": 20,
        "trainer.resume_mode": "disable",
        "algorithm.kl_coef": 0.001,
        "reward.name": "gsm8k",
        "rollout.eval_temperature": 1.0,
        "megatron.ddp.overlap_grad_reduce": True,
    },
    "trinity_gsm8k.yaml": {
        "allocation": "vllm:d2+megatron:d3t2",
        "data.train": "hf:openai/gsm8k:main:train",
        "data.eval": {"test": "hf:openai/gsm8k:main:test"},
        "rollout.n": 8,
        "algorithm.optimizer_steps": 1,
        "algorithm.kl_estimator": "k2",
        "reward.name": "math",
    },
    "trl_grpo.py": {
        "allocation": "vllm:d1|megatron:d1",
        "trainer.prompts_per_step": 4,
        "trainer.total_steps": 100,
        "trainer.schedule.warmup_steps": 10,
        "trainer.schedule.name": "linear",
        "algorithm.kl_coef": 0.04,
        "algorithm.loss_mean": "token",
        "model.lora.alpha": 32.0,
        "reward.name": "rewards:accuracy",
        "data.train": "hf:trl-lib/tldr:train",
    },
    "trl_grpo.yaml": {
        "trainer.prompts_per_step": 4,
        "trainer.total_steps": 160,
        "algorithm.advantage_std": False,
        "algorithm.kl_coef": 0.0,
    },
}


def read(path: Path, **asked: Any) -> Imported:
    return import_file(path, Asked(variables={"HOME": "/home/u"}, rows=lambda _: 640, **asked))


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_configuration_becomes(name: str) -> None:
    imported = read(next(path for path in CONFIGS if path.name == name))
    assert imported.stops == []
    assert {key: imported.values.get(key) for key in EXPECTED[name]} == EXPECTED[name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_is_written_loads_as_it_was_meant(path: Path, tmp_path: Path) -> None:
    imported = read(path)
    assert {row.verdict for row in imported.rows} <= {"taken", "no meaning here", "not supported here", "not given"}
    written = tmp_path / "run.yaml"
    written.write_text(as_yaml(imported))
    given = [f"{name}={'10' if name == 'trainer.total_steps' else 'x'}" for name in imported.missing]
    loaded = load_settings(written, given)
    for name, value in imported.values.items():
        if not name.startswith(("rollout.vllm.", "megatron.transformer.", "megatron.ddp.")):
            found = value_of(loaded.settings, name)
            found = plain(found) if name == "data.eval" else found
            assert value == (
                list(found) if isinstance(found, tuple) else str(found) if isinstance(value, str) else found
            )
    assert is_own(loaded.origins)
    table = as_table(imported)
    for row in imported.rows:
        assert row.entry.key in table
    assert len(as_json(imported)["keys"]) == len(imported.rows)


def test_rules_lead_to_settings_and_facts_that_exist() -> None:
    for dialect in DIALECTS.values():
        for rule in dialect.rules:
            re.compile(rule.pattern)
            assert bool(rule.key) + bool(rule.fact) + bool(rule.why) + bool(rule.does) == 1, rule
            if rule.fact and "\\" not in rule.fact:
                assert rule.fact in FACTS, rule
            for key in _expanded(rule.target, rule.pattern):
                assert exists(key), rule
        assert [key for key in dialect.defaults if dialect.rule(key) is None] == []
    assert set(TO_VLLM.split("|")) == set(PASSED)


def _expanded(target: str, pattern: str) -> list[str]:
    """A target with each choice of the group that it refers to."""
    if "\\" not in target:
        return [target] if target else []
    groups = re.findall(r"(?<!\\)\((?!\?)([\w|]+)\)", pattern)
    return [target.split("\\")[0] + word for group in groups[-1:] for word in group.split("|") if word.isidentifier()]


def test_each_file_is_recognised_by_its_keys(tmp_path: Path) -> None:
    names = {path.name: read(path).dialect.name for path in CONFIGS}
    assert all(name.startswith(("siirl", "trinity.yaml", dialect)) for name, dialect in names.items())
    with pytest.raises(UserError, match="say which it is") as error:
        recognise(["buffer.batch_size", "actor_rollout_ref.model.path"], (), "x.yaml")
    assert "verl / siiRL and Trinity-RFT" in error.value.cause
    with pytest.raises(UserError, match="of no system that can be imported"):
        recognise(["foo.bar"], (), "x.yaml")
    with pytest.raises(UserError, match="there is no dialect 'nemo'"):
        read(CONFIGS[0], dialect="nemo")
