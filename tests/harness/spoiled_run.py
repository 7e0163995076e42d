"""A run that would work, to be spoiled, and what a refusal looks like."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml


@dataclass
class Bench:
    """A run that would work, on copies of the quickstart's files, to be spoiled."""

    folder: Path
    settings: dict = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    def data(self, *rows: object) -> None:
        """Train on these rows; text is taken for a line as it is."""
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (self.folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def model_config(self, **values: object) -> None:
        file = self.model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))


@pytest.fixture
def bench(quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(quickstart / "model", tmp_path / "model")
    shutil.copy(quickstart / "train.jsonl", tmp_path)
    settings = {
        "experiment": {"name": "bad", "dir": "run"},
        "allocation": "hf:d1|megatron:d1",
        "model": {"path": "model"},
        "data": {"train": "train.jsonl", "template": "text", "max_prompt_tokens": 16},
        "reward": {"name": "exact"},
        "rollout": {"n": 2, "max_response_tokens": 8},
        "trainer": {"total_steps": 2, "prompts_per_step": 4, "tokens_per_microbatch": 64, "logger": ["console"]},
    }
    made = Bench(tmp_path, settings)
    made.write()
    return made


ROW = {"prompt": "sort 4132=", "ground_truth": "1234"}


def check_refusal(code: int, said: str, *texts: str) -> None:
    """Exit code 2, cause and fix on one screen, and nothing else."""
    assert code == 2, said
    assert said.startswith("error: ")
    assert "fix: " in said
    assert len(said.splitlines()) <= 24
    assert "Traceback" not in said
    for text in texts:
        assert text in said, f"{text!r} is not in: {said}"
