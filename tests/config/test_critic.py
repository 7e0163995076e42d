"""Settings of a critic: read where there is one, refused where there is none."""

from pathlib import Path

import pytest

from pentad.config.loading.load import load_settings
from pentad.errors import UserError

ALGORITHM = """
class ActorCritic:
    columns = frozenset({"values"})
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "with_critic.py").write_text(ALGORITHM)
    (tmp_path / "run.yaml").write_text("""
experiment: {name: demo}
model: {path: some/model}
data: {train: train.jsonl}
trainer: {total_steps: 10, prompts_per_step: 2}
""")
    return tmp_path / "run.yaml"


OWN = "algorithm.name=with_critic.py:ActorCritic"


def test_defaults(file: Path) -> None:
    settings = load_settings(file, [OWN, "critic.warmup_steps=3", "algorithm.optimizer_steps=2"]).settings
    assert settings.critic.model is None and settings.critic.optimizer.lr == 1e-5 and not settings.critic.export
    steps = {role: settings.optimizer_steps(role) for role in ("policy", "reference", "critic")}
    assert steps == {"policy": 14, "reference": None, "critic": 20}
    assert load_settings(file, []).settings.optimizer_steps("policy") == 10


@pytest.mark.parametrize(
    "overrides, cause",
    [
        (["critic.warmup_steps=1"], "critic.warmup_steps (command line) is set, but algorithm grpo has no critic"),
        (["critic.optimizer.lr=1e-4"], "critic.optimizer.lr (command line) is set, but algorithm grpo has no critic"),
        ([OWN, "critic.schedule.min_lr_ratio=0.1"], "is set, but a constant schedule does not read it"),
        ([OWN, "critic.warmup_steps=10"], "the policy would never be trained"),
        ([OWN, "critic.schedule.warmup_steps=11"], "the run has only 10 optimizer steps"),
        (
            [OWN, "critic.warmup_steps=4", "trainer.schedule.warmup_steps=7"],
            "trainer.schedule.warmup_steps (command line) is 7, but the run has only 6 optimizer steps",
        ),
        ([OWN, "model.lora.rank=8"], "adapters are not trained beside a critic"),
        ([OWN, "critic.lr=1"], "critic.lr"),
    ],
)
def test_what_cannot_be_is_refused(file: Path, overrides: list[str], cause: str) -> None:
    with pytest.raises(UserError) as refused:
        load_settings(file, overrides)
    assert cause in refused.value.cause
