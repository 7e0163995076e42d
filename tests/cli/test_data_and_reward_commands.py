"""`pentad data show` and `pentad reward try` on real files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml
from transformers import PreTrainedTokenizerFast

from pentad.cli.main import main

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MINE = (
    "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return {'score': 0.5, 'n': 3}\n"
)
ROWS = [{"question": f"1 + {n}?", "answer": f"#### {n + 1}", "data_source": "openai/gsm8k"} for n in range(3)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator([], tokenizers.trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "talk.json").write_text(
        json.dumps([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}] * 2}])
    )
    (tmp_path / "mine.py").write_text(MINE)
    settings: dict[str, Any] = {
        "experiment": {"name": "x"},
        "model": {"path": "none", "tokenizer": "tokenizer"},
        "data": {"train": "rows.jsonl"},
        "trainer": {"total_steps": 2, "prompts_per_step": 2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "run.yaml"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object, code: int = 0) -> str:
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code == 2 else captured.out

    return run


def test_rows_are_shown_as_the_model_gets_them(config: Path, said: Callable[..., str]) -> None:
    text = said("data", "show", config, "data.max_prompt_tokens=8", "--rows", 1)
    assert text.startswith("data.train: prompts from 'question', ground truth from 'answer'\n")
    assert (
        "rows.jsonl:1  data_source openai/gsm8k\n  prompt, 25 tokens:\n    <|im_start|>user\n    1 + 0?<|im_end|>"
        in text
    )
    assert "longer than data.max_prompt_tokens = 8; data.too_long is error" in text
    assert text.endswith("ground truth: #### 1\n")
    assert "rows.jsonl:2" not in text
    given = ["algorithm.name=sft", "allocation=megatron:d1", "data.train=talk.json"]
    text = said("data", "show", config, *given)
    assert text.count("trained on, 3 tokens:\n    Yo<|im_end|>\n") == 2
    assert text.count("given, ") == 2
    assert "--rows 0 shows nothing" in said("data", "show", config, "--rows", 0, code=2)


def test_a_reward_is_tried_on_rows(config: Path, said: Callable[..., str], tmp_path: Path) -> None:
    lines = said("reward", "try", config, "--answer-column", "answer", "--rows", 2).splitlines()
    table = [line.split() for line in lines if line.startswith(" rows.jsonl")]
    assert [row[-2] for row in table] == ["1", "1"]
    (tmp_path / "a.jsonl").write_text('"#### 1"\n{"response": "#### 9"}\n')
    mine, short = "{name: 'mine.py:compute_score', weight: 2}", "{name: length, options: {limit: 5}}"
    functions = f"reward.functions={{right: gsm8k, mine: {mine}, short: {short}}}"
    text = said("reward", "try", config, functions, "--answers", tmp_path / "a.jsonl")
    assert "reward.functions.mine=mine.py:compute_score is called as verl calls it" in text
    table = [line.split() for line in text.splitlines() if line.startswith(" rows.jsonl")]
    assert [row[-6:-1] for row in table] == [["1", "0.5", "-1", "3", "1"], ["0", "0.5", "-1", "3", "0"]]
    failing = said("reward", "try", config, "reward.name=math", "--answer-column", "question", "--rows", 1)
    assert "openai/gsm8k" not in failing


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["no answers are given", "--answer-column answer"]),
        (["--answers", "x.txt", "--answer-column", "answer"], ["both given", "keep one"]),
        (["--answers", "none.txt"], ["none.txt cannot be read", "check the path"]),
        (["--answer-column", "none"], ["rows.jsonl:1: column 'none' holds no text; columns: question, answer"]),
        (["--answer-column", "answer", "--eval", "t"], ["data.eval has no t"]),
        (["--answer-column", "answer", "--rows", "0"], ["--rows 0 tries nothing"]),
    ],
)
def test_what_cannot_be_tried(
    config: Path, said: Callable[..., str], arguments: list[str], fragments: list[str]
) -> None:
    text = said("reward", "try", config, *arguments, code=2)
    for fragment in fragments:
        assert fragment in text
