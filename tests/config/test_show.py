"""What is printed about settings is complete and loads again."""

from pathlib import Path

import pytest

from pentad.config.loading.keys import known_keys
from pentad.config.loading.load import load_settings
from pentad.config.loading.show import effective_yaml, reference_markdown, reference_text

MINIMAL = ["experiment.name=a", "model.path=m", "data.train=t", "trainer.total_steps=5"]
RUNS = {
    "defaults": [],
    "sft": ["algorithm.name=sft", "allocation=megatron:d2"],
    "sft with evaluation": ["algorithm.name=sft", "data.eval={a: b}", "rollout.max_response_tokens=9"],
    "everything odd": [
        "data.eval={gsm8k: x.jsonl, 'on': y.jsonl, '5': z.jsonl}",
        "data.system_prompt='two\\nlines: # and \"quotes\" 1e-6'",
        r"rollout.stop=['\${x}', '1e-6', 'null', ' ']",
        "experiment.dir=some/where",
        "megatron.transformer={recompute_granularity: full, moe_z_loss_coeff: 2.5e-7}",
        "algorithm.kl_coef=1e-3",
        "trainer.schedule={name: cosine, min_lr_ratio: 0.1}",
    ],
}


@pytest.mark.parametrize("case", RUNS)
def test_effective_settings_load_again_as_the_same(tmp_path: Path, case: str) -> None:
    first = tmp_path / "first.yaml"
    first.write_text("ray: {}\n")
    loaded = load_settings(first, MINIMAL + RUNS[case])
    second = tmp_path / "second.yaml"
    second.write_text(effective_yaml(loaded))
    assert load_settings(second).settings == loaded.settings


def test_effective_settings_say_where_each_came_from(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("trainer:\n  test_freq: 0\n")
    lines = [" ".join(line.split()) for line in effective_yaml(load_settings(path, MINIMAL)).splitlines()]
    assert "test_freq: 0 # run.yaml:2" in lines
    assert "total_steps: 5 # command line" in lines
    assert "export: true # default" in lines
    assert "# kl_estimator: k3 # not read: there is no KL penalty, as algorithm.kl_coef is 0" in lines


def test_companions_of_full_recompute_are_shown_and_said(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("megatron:\n  transformer:\n    recompute_granularity: full\n")
    loaded = load_settings(path, MINIMAL)
    lines = [" ".join(line.split()) for line in effective_yaml(loaded).splitlines()]
    assert "recompute_granularity: full # run.yaml:3" in lines
    assert "recompute_method: uniform # assumed for recompute_granularity=full" in lines
    assert "recompute_num_layers: 1 # assumed for recompute_granularity=full" in lines
    assert len(loaded.notices) == 1 and "recompute_num_layers=1 are assumed" in loaded.notices[0]
    given = load_settings(path, [*MINIMAL, "megatron.transformer.recompute_num_layers=4"])
    assert given.settings.megatron.transformer["recompute_num_layers"] == 4
    assert load_settings(path, [*MINIMAL, "megatron.transformer.recompute_granularity=selective"]).notices == ()


def test_every_setting_is_described() -> None:
    assert [key.name for key in known_keys().values() if not key.description] == []
    text = reference_text()
    assert all(f"{name}  (" in text for name in known_keys())


def test_reference_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == reference_markdown(), "run `make docs`"
