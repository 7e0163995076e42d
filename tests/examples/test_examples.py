"""The examples say what they mean: their settings load, and the quickstart's files fit together."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoTokenizer

from pentad.config.schema.run import RunSettings
from pentad.weights.mapping import expected_shapes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_settings_load_and_fit_on_one_screen(path):
    text = path.read_text()
    RunSettings(**yaml.safe_load(text))
    assert len(text.splitlines()) < 40


def test_quickstart_files(quickstart):
    files = {
        name: [json.loads(line) for line in (quickstart / f"{name}.jsonl").read_text().splitlines()]
        for name in ("sft", "train", "eval")
    }
    prompts = {name: {row["prompt"] for row in rows} for name, rows in files.items()}
    assert not prompts["eval"] & (prompts["train"] | prompts["sft"])
    truth = {row["prompt"]: row["ground_truth"] for row in files["train"]}
    assert all(answer == "".join(sorted(prompt[5:9])) for prompt, answer in truth.items())
    right = sum(row["response"] == truth[row["prompt"]] for row in files["sft"]) / len(files["sft"])
    assert 0.2 < right < 0.3

    tokenizer = AutoTokenizer.from_pretrained(quickstart / "model")
    for row in (*files["sft"], *files["train"]):
        for text in row.values():
            tokens = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in tokens
            assert tokenizer.decode([*tokens, tokenizer.eos_token_id], skip_special_tokens=True) == text
    shapes = expected_shapes(AutoConfig.from_pretrained(quickstart / "model"))
    assert shapes["model.embed_tokens.weight"] == (16, 64)
