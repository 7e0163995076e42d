"""A critic's model: the decoder of a language model with a value head, as transformers' `*ForTokenClassification`.

Invariant: where the directory has a head of its own, that head is used or the directory is refused; any other begins
with a head of zeros, so that the value of everything is 0 until something is learnt.
"""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from pentad.errors import UserError
from pentad.weights.block_files import BlockReader
from pentad.weights.checkpoint_model import open_weights
from pentad.weights.hf_files import TensorReader
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import CRITIC

HEAD, BIAS = "score.weight", "score.bias"
# What a critic begins from may have an output layer that it does not use.
_UNUSED = ("lm_head.weight", BIAS)
_SETTING = "critic.model"


def critic_values(model_type: str) -> dict[str, Any]:
    """The values of config.json that make a model of that architecture a critic."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES as NAMES

    return {
        "architectures": [NAMES[model_type]],
        "id2label": {"0": "value"},
        "label2id": {"value": 0},
        "tie_word_embeddings": False,
        "token_classification_bias": False,
        # transformers would drop out hidden states before the head while it trains.
        "classifier_dropout": 0.0,
    }


def critic_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a critic with the decoder of a model."""
    made = copy.deepcopy(config)
    for name, value in critic_values(config.model_type).items():
        setattr(made, name, {0: "value"} if name == "id2label" else value)
    return made


def critic_json(config_json: str) -> str:
    """The text of config.json of a critic with the decoder of a model."""
    config = {name: value for name, value in json.loads(config_json).items() if name != "num_labels"}
    return json.dumps({**config, **critic_values(config["model_type"])}, indent=2) + "\n"


def write_critic_config(source: Path, checkpoint: Path) -> str:
    """Put the configuration of a critic beside its weights in a checkpoint that is being written, and sync it.

    Args:
        source: the directory that it began with.

    Returns:
        the name of the file, relative to the checkpoint.

    Raises:
        OSError: as it comes.
    """
    name = f"{CRITIC}/config.json"
    with (checkpoint / name).open("w", encoding="utf-8") as file:
        file.write(critic_json((source / "config.json").read_text(encoding="utf-8")))
        file.flush()
        os.fsync(file.fileno())
    return name


class CriticReader:
    """The tensors that a critic begins with, by their Hugging Face names.

    Args:
        directory: of a language model, of a model with a head of one label, or of the critic of a checkpoint.

    Raises:
        UserError: files are missing or cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        is_own = directory.name == CRITIC and next(directory.glob("rank-*.safetensors"), None) is not None
        self.reader: TensorReader = BlockReader(directory) if is_own else open_weights(directory)
        self.has_head = HEAD in self.reader.shapes

    def get(self, name: str) -> Tensor:
        """One whole tensor, on the CPU; the head is float32 zeros where the directory has none."""
        if name == HEAD and not self.has_head:
            embedding = self.reader.shapes["model.embed_tokens.weight"]
            return torch.zeros(1, embedding[1], dtype=torch.float32)
        return self.reader.get(name)

    def check(self, config: PreTrainedConfig) -> None:
        """Compare with the tensors that a critic needs.

        Args:
            config: the critic's.

        Raises:
            UserError: tensors are missing, unexpected or misshapen; the head has several labels or a bias.
        """
        shapes = self.reader.shapes
        if self.has_head and shapes[HEAD][0] != 1:
            raise UserError(
                f"{_SETTING}: {self.directory} has a head of {shapes[HEAD][0]} labels; a critic gives one value",
                "give a model with num_labels = 1, or a language model, which begins with a new head",
            )
        if BIAS in shapes and bool(self.reader.get(BIAS).any()):
            raise UserError(
                f"{_SETTING}: {self.directory} has {BIAS}, which a critic has not",
                "give a model whose head has no bias",
            )
        check_shapes(shapes, expected_shapes(config), self.directory, has_head=self.has_head)


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], directory: Path, *, has_head: bool
) -> None:
    """Compare the tensors of a directory with those of a critic; an output layer that it does not use may be there.

    Raises:
        UserError: a tensor is missing, unexpected or misshapen.
    """
    needed = {name: tuple(shape) for name, shape in expected.items() if has_head or name != HEAD}
    present = {name for name in shapes if not name.endswith("rotary_emb.inv_freq") and name not in _UNUSED}
    problems = [f"missing tensor {name}" for name in sorted(needed.keys() - present)]
    problems += [f"unexpected tensor {name}" for name in sorted(present - needed.keys())]
    problems += [
        f"tensor {name} has shape {list(shapes[name])}, expected {list(needed[name])}"
        for name in sorted(present & needed.keys())
        if tuple(shapes[name]) != needed[name]
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{_SETTING}: {directory} does not match its config.json:\n  " + "\n  ".join(problems[:8]) + more,
            "check that critic.model is complete, and that config.json belongs to these weights",
        )
