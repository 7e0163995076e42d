"""Models between Hugging Face directories and checkpoints.

Invariant: what is written has its name only when it is complete and on the disk; a damaged checkpoint is not converted;
every tensor that the model needs is there, and no other.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

from pentad.errors import UserError
from pentad.families.hf_config import facts_from_config
from pentad.layout import Layout, parse_allocation
from pentad.layout.cluster_checks import check_projections
from pentad.layout.validate import check_layout, refuse
from pentad.record.checkpoints import DIRECTORY, Checkpoint, Checkpoints, find_checkpoint, publish
from pentad.record.manifest import NAME, FileRecord, Manifest, record_file
from pentad.run.resume import model_config, software_versions
from pentad.weights.block_files import WriteError
from pentad.weights.checkpoint_model import model_of, open_weights, write_model_files
from pentad.weights.conversion import export_checkpoint, with_dtype, write_layout
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import POLICY, gguf_cache, load_config, resolve_model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Wanted:
    """What a model is converted to.

    Attributes:
        out: the directory; must not exist.
        form: None: a Hugging Face directory of a checkpoint, unless a layout is given; otherwise a checkpoint.
        layout: sizes of the trainer's layout, as `t2p2`; None: one rank.
        dtype: None: as in the source; of a training run's checkpoint as a Hugging Face directory, that of the run.
    """

    out: Path
    form: Literal["checkpoint", "hf"] | None = None
    layout: str | None = None
    dtype: Literal["fp32", "bf16"] | None = None


def convert_model(source: str, wanted: Wanted, warn: Callable[[str], None]) -> str:
    """Convert a model.

    Args:
        source: a directory, a hub id, a .gguf file, a checkpoint, or a run.
        warn: is told of damaged checkpoints of a run, which are passed over.

    Returns:
        what was written, in words.

    Raises:
        UserError: there is no such model, it is not supported or damaged, or it cannot be written in that form.
    """
    if wanted.out.exists():
        raise UserError(f"{wanted.out} exists already", "choose another directory, or move it away")
    # What is wrong is raised; transformers would say the rest in between.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checkpoint = find_checkpoint(Path(source).expanduser(), warn) if _names_checkpoint(Path(source)) else None
    form = wanted.form or ("hf" if checkpoint is not None and wanted.layout is None else "checkpoint")
    if form == "checkpoint":
        return _write_checkpoint(source, checkpoint, wanted)
    if wanted.layout is not None:
        raise UserError("--layout is not read together with --to hf", "leave one of the two out")
    if checkpoint is None:
        raise UserError(f"{source} is a Hugging Face model already", "leave --to out, to make a checkpoint of it")
    export_model(checkpoint, wanted.out, dtype=wanted.dtype)
    return f"a Hugging Face model, of step {checkpoint.manifest.step} of {checkpoint.path}"


def export_model(
    checkpoint: Checkpoint, out: Path, *, model: str | None = None, dtype: Literal["fp32", "bf16"] | None = None
) -> None:
    """Write the model of a checkpoint as a Hugging Face directory.

    Args:
        model: for everything beside the weights, as `model.path`; None: what is in the checkpoint.
        dtype: of the weights, which config.json then states; None: that of the run, which leaves config.json as it is,
            as the run's own export does; of weights without a run, as they are stored.

    Raises:
        UserError: it cannot be read or written.
    """
    source = model_of(checkpoint.path) if model is None else resolve_model(model, gguf_cache(model), "--model")
    text = (source / "config.json").read_text(encoding="utf-8")
    if dtype is not None:
        text = with_dtype(text, _DTYPES[dtype])
    chosen = dtype or checkpoint.manifest.model.get("dtype")
    export_checkpoint(checkpoint.path / POLICY, source, out, None if chosen is None else _DTYPES[chosen], text)


def _names_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint or a run, sound or not, and no model directory."""
    path = path.expanduser()
    if (path / "config.json").is_file():
        return False
    has_some = any(Checkpoints(directory).steps() for directory in (path, path / DIRECTORY))
    return has_some or (path / NAME).exists() or (path / POLICY).is_dir()


def _write_checkpoint(source: str, checkpoint: Checkpoint | None, wanted: Wanted) -> str:
    if checkpoint is None:
        directory = resolve_model(source, gguf_cache(source), "SOURCE")
        manifest = Manifest(step=0, version=0, roles=(POLICY,), files=())
    else:
        directory = model_of(checkpoint.path)
        then = checkpoint.manifest
        manifest = Manifest(step=then.step, version=then.version, roles=(POLICY,), files=())
    config = load_config(directory)
    layout = _layout(wanted.layout, config)
    partial = wanted.out.with_name(f".{wanted.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / POLICY).mkdir(parents=True)
        files = _write_files(directory, config, layout, partial, wanted)
        manifest = replace(
            manifest,
            files=tuple(files),
            model={"path": source, "config": model_config(directory)},
            settings={"allocation": f"megatron:{layout}"},
            software=software_versions(),
        )
        publish(partial, wanted.out, manifest)
    except OSError as error:
        raise WriteError.of(error, wanted.out) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    ranks = sum(file.name.startswith(POLICY) for file in files)
    return f"a checkpoint of weights for megatron:{layout}, {ranks} file{'s' if ranks > 1 else ''}"


def _layout(sizes: str | None, config: PreTrainedConfig) -> Layout:
    allocation = parse_allocation(f"megatron:{(sizes or 'd1').removeprefix('megatron:')}")
    if allocation.rollout is not None:
        raise UserError(f"--layout {sizes} has rollout engines", f"write {allocation.trainer.layout}")
    if len(allocation.components) > 1:
        raise UserError(f"--layout {sizes} has more than one trainer", f"write {allocation.trainer.layout}")
    layout, facts = allocation.trainer.layout, facts_from_config(config.to_dict())
    refuse([*check_layout(facts, layout), *check_projections(facts, layout)], f"--layout {sizes}")
    return layout


def _write_files(
    directory: Path, config: PreTrainedConfig, layout: Layout, partial: Path, wanted: Wanted
) -> list[FileRecord]:
    reader = open_weights(directory)
    reader.check(expected_shapes(config), tied=bool(config.tie_word_embeddings))
    dtype = None if wanted.dtype is None else _DTYPES[wanted.dtype]
    text = None
    if dtype is not None:
        text = with_dtype((directory / "config.json").read_text(encoding="utf-8"), dtype)
    rest = [record_file(partial, name) for name in write_model_files(directory, partial, text)]
    blocks = write_layout(reader, config, layout, partial / POLICY, dtype)
    return [*(FileRecord(f"{POLICY}/{record.name}", record.bytes, record.sha256) for record in blocks), *rest]
