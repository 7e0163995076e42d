"""A checkpoint as a model: blocks of weights in `policy`, and beside them, in `hf`, all else that a model has.

Invariant: whoever is given a model's directory reads its tensors through `open_weights`; the directory is `hf` of a
checkpoint, or a Hugging Face directory.
"""

import os
import shutil
from pathlib import Path

from pentad.errors import UserError
from pentad.weights.block_files import BlockReader
from pentad.weights.hf_files import CheckpointReader, TensorReader
from pentad.weights.source import HF, POLICY, checkpoint_of, companion_files


def open_weights(directory: Path) -> TensorReader:
    """The tensors of a model.

    Args:
        directory: as `pentad.weights.source.resolve_model` gives it.

    Raises:
        UserError: files are missing, or cannot be read.
    """
    checkpoint = checkpoint_of(directory)
    return CheckpointReader(directory) if checkpoint is None else BlockReader(checkpoint / POLICY)


def write_model_files(source: Path, checkpoint: Path, config_json: str | None = None) -> list[str]:
    """Copy what a model has beside weights into a checkpoint that is being written, and sync it to the disk.

    Args:
        source: directory of the model.
        config_json: text of config.json; that of the source if None.

    Returns:
        the names of the files, relative to the checkpoint.

    Raises:
        OSError: as it comes.
    """
    target = checkpoint / HF
    target.mkdir(exist_ok=True)
    text = (source / "config.json").read_text(encoding="utf-8") if config_json is None else config_json
    (target / "config.json").write_text(text, encoding="utf-8")
    for path in companion_files(source):
        shutil.copyfile(path, target / path.name)
    names = sorted(path.name for path in target.iterdir())
    for name in names:
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())
    return [f"{HF}/{name}" for name in names]


def model_of(checkpoint: Path) -> Path:
    """The directory of the model of a checkpoint, to be given to `open_weights`.

    Raises:
        UserError: the checkpoint has none.
    """
    if not (checkpoint / HF / "config.json").is_file():
        raise UserError(
            f"checkpoint {checkpoint} has no {HF}/config.json: an earlier version of Pentad has written it",
            "name the model that training began with: `pentad checkpoint export CHECKPOINT --model MODEL --out OUT`",
        )
    return checkpoint / HF
