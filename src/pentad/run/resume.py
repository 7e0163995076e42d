"""Going on from a checkpoint.

Invariant: a run goes on only where the model and the rows of data are those of the checkpoint; what else has changed is
told. Nothing of the run directory changes before its processes stand.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pentad.config.schema.algorithms.base import Role
from pentad.data.prompts import EncodedExamples
from pentad.errors import UserError
from pentad.loops.saving import DRIVER_STATE
from pentad.record.checkpoints import Checkpoint
from pentad.record.machine import collect_versions
from pentad.record.manifest import Manifest, differences
from pentad.run.choice import ORIGIN, is_own
from pentad.run.prepare import Prepared
from pentad.weights.critic import critic_values

# Packages whose versions decide what is computed.
_SOFTWARE = ("pentad", "torch", "megatron-core", "transformers", "ray", "vllm", "safetensors", "quack-kernels")
# Of config.json: what changes nothing that is computed.
_UNCOMPARED = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache", "name_or_path")
_SHOWN = 8
# Of each file of weights.
_PLACES, _PLACE_BYTES = 16, 1 << 16
# Settings that decide which row has which number.
_KEPT = (("experiment", "seed"), ("data", "shuffle"))


@dataclass(frozen=True)
class Resume:
    """A checkpoint that a run goes on from.

    Attributes:
        changes: what has changed since and may.
        loop: `Loop.state_dict()`.
        trainers: counts of the trainer's models.
    """

    checkpoint: Checkpoint
    changes: tuple[str, ...]
    loop: Mapping[str, Any]
    trainers: Mapping[Role, Mapping[str, int]]

    @property
    def step(self) -> int:
        """The last step that was trained."""
        return self.checkpoint.manifest.step


def base_manifest(prepared: Prepared, resume: Resume | None = None) -> Manifest:
    """What all checkpoints of a run have in common.

    Args:
        resume: what the run goes on from.
    """
    return Manifest(
        step=0,
        version=0,
        roles=("policy",) if prepared.critic is None else ("policy", "critic"),
        files=(),
        model={
            "path": prepared.settings.model.path,
            "config": model_config(prepared.directory) | _adapters(prepared),
            "weights": _weights(prepared.directory),
            **({} if prepared.critic is None else {"critic": _critic_config(prepared.critic)}),
        },
        data=_data(prepared),
        run={} if (origin := _origin(prepared, resume)) is None else {ORIGIN: origin},
        settings=prepared.settings.model_dump(mode="json"),
        software=software_versions(),
    )


def load_resume(checkpoint: Checkpoint, prepared: Prepared) -> Resume:
    """The driver's part of a checkpoint.

    Raises:
        UserError: it is of another model or other data, holds weights alone, or cannot be read.
    """
    if DRIVER_STATE not in {file.name for file in checkpoint.manifest.files}:
        raise UserError(
            f"checkpoint {checkpoint.path} holds weights alone: there is no run to go on with",
            "set model.path to it, and leave trainer.resume_mode at auto",
        )
    changes = check_same(checkpoint.manifest, prepared, checkpoint.path)
    path = checkpoint.path / DRIVER_STATE
    try:
        state = torch.load(path, weights_only=True)
        return Resume(checkpoint, tuple(changes), state["loop"], state["trainers"])
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read {path}: {error}", "take another checkpoint") from None


def check_same(manifest: Manifest, prepared: Prepared, checkpoint: Path) -> list[str]:
    """Compare what a checkpoint is of with what is to be run.

    Returns:
        what has changed and may.

    Raises:
        UserError: another model, or other data.
    """
    now = base_manifest(prepared)
    problems = [f"model: {line}" for line in differences(manifest.model["config"], now.model["config"])]
    if manifest.model["weights"] != now.model["weights"]:
        problems.append(f"model: the weights in {prepared.directory} are others than those that the run began with")
    problems += [f"data: {line}" for line in differences(manifest.data, now.data)]
    if "critic" in now.roles and "critic" not in manifest.roles:
        problems.append("critic: the checkpoint has none; go on with the algorithm that it is of")
    elif "critic" in now.roles:
        lines = differences(manifest.model.get("critic", {}), now.model["critic"])
        problems += [f"critic: {line}" for line in lines]
    for section, name in _KEPT:
        then_value, now_value = (values.get(section, {}).get(name) for values in (manifest.settings, now.settings))
        if then_value != now_value:
            problems.append(f"{section}.{name}: {then_value} -> {now_value}, so the order of the rows would be another")
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"checkpoint {checkpoint} is of another run (then -> now):\n  " + "\n  ".join(problems[:_SHOWN]) + more,
            "take the model and data of that run, or begin a new one: choose another experiment.name, or set "
            "trainer.resume_mode=disable and experiment.overwrite=true",
        )
    return [*_settings_changed(manifest, now), *(f"{line}" for line in differences(manifest.software, now.software))]


def _settings_changed(then: Manifest, now: Manifest) -> Iterable[str]:
    ignored = ("trainer.resume_mode", "experiment.overwrite", "experiment.dir", "experiment.name", "trainer.logger")
    return [line for line in differences(then.settings, now.settings) if line.partition(":")[0] not in ignored]


def model_config(directory: Path) -> dict[str, Any]:
    """What the configuration of a model directory says of what it computes."""
    # As it is written: what transformers adds by default differs between its versions.
    config = json.loads((directory / "config.json").read_text())
    return {name: value for name, value in config.items() if name not in _UNCOMPARED}


def _critic_config(directory: Path) -> dict[str, Any]:
    """The same of a critic, whatever head its directory has."""
    config = {name: value for name, value in model_config(directory).items() if name != "num_labels"}
    return config | critic_values(config["model_type"])


def _weights(directory: Path) -> str:
    """What tells files of weights apart, without reading all of them: names, sizes, and some places."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size}".encode())
            for part in range(_PLACES):
                file.seek(part * max(0, size - _PLACE_BYTES) // (_PLACES - 1))
                digest.update(file.read(_PLACE_BYTES))
    return digest.hexdigest()[:16]


def _origin(prepared: Prepared, resume: Resume | None) -> str | None:
    """The checkpoint that `trainer.resume_mode` names, or has named when the run began."""
    if resume is None:
        return None
    known, mode = resume.checkpoint.manifest.run.get(ORIGIN), prepared.settings.trainer.resume_mode
    if known is not None and is_own(resume.checkpoint, prepared.settings.experiment.run_dir):
        named = mode == "auto" or Path(known).is_relative_to(Path(mode).expanduser().resolve())
        if named:
            return known
    return None if mode == "auto" else str(resume.checkpoint.path.resolve())


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide what is computed."""
    packages = collect_versions()["packages"]
    return {name: packages[name] for name in _SOFTWARE if name in packages}


def _adapters(prepared: Prepared) -> dict[str, Any]:
    """What adapters a checkpoint has; nothing where the model itself is trained."""
    lora = prepared.settings.model.adapters
    if lora is None:
        return {}
    return {f"lora.{name}": getattr(lora, name) for name in ("rank", "scale", "targets", "exclude")}


def _data(prepared: Prepared) -> dict[str, Any]:
    """What identifies the rows that are trained on, as the model gets them."""
    digest = hashlib.sha256()
    train = prepared.train
    rows = (torch.cat(pair) for pair in train.examples) if isinstance(train, EncodedExamples) else train.tokens
    for tokens in rows:
        digest.update(len(tokens).to_bytes(4, "little"))
        digest.update(tokens.to(torch.int32).numpy().tobytes())
    for mask in train.masks if isinstance(train, EncodedExamples) else ():
        digest.update(b"all" if mask is None else mask.numpy().tobytes())
    for row in train.rows:
        digest.update(repr((row.ground_truth, row.data_source, sorted(row.extra.items(), key=str))).encode())
    return {"rows of data.train": len(train), "their contents (SHA-256)": digest.hexdigest()[:16]}
