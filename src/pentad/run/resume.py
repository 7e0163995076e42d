"""Going on from a checkpoint.

Invariant: a run goes on only where the model and the rows of data are those of the checkpoint; what else has changed is
told. Nothing of the run directory changes before its processes stand.
"""

import hashlib
import json
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
from pentad.run.prepare import Prepared
from pentad.weights.source import load_config

# Packages whose versions decide what is computed.
_SOFTWARE = ("pentad", "torch", "megatron-core", "transformers", "ray", "vllm", "safetensors", "quack-kernels")
# Of config.json: what changes nothing that is computed.
_UNCOMPARED = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache", "name_or_path")
_SHOWN = 8
# Of each file of frozen weights.
_PLACES, _PLACE_BYTES = 16, 1 << 16


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


def base_manifest(prepared: Prepared) -> Manifest:
    """What all checkpoints of a run have in common."""
    packages = collect_versions()["packages"]
    return Manifest(
        step=0,
        version=0,
        roles=("policy",),
        files=(),
        model={"path": prepared.settings.model.path, "config": _config(prepared) | _adapters(prepared)},
        data=_data(prepared),
        settings=prepared.settings.model_dump(mode="json"),
        software={name: packages[name] for name in _SOFTWARE if name in packages},
    )


def load_resume(checkpoint: Checkpoint, prepared: Prepared) -> Resume:
    """The driver's part of a checkpoint.

    Raises:
        UserError: it is of another model or other data, or cannot be read.
    """
    changes = check_same(checkpoint.manifest, prepared, checkpoint.path)
    path = checkpoint.path / DRIVER_STATE
    try:
        state = torch.load(path, weights_only=True)
        return Resume(checkpoint, tuple(changes), state["loop"], state["trainers"])
    except (OSError, RuntimeError, KeyError, ValueError) as error:
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
    problems += [f"data: {line}" for line in differences(manifest.data, now.data)]
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


def _config(prepared: Prepared) -> dict[str, Any]:
    """What the model's configuration says of what it computes."""
    config = load_config(prepared.directory).to_dict()
    return json.loads(
        json.dumps({name: value for name, value in config.items() if name not in _UNCOMPARED}, default=str)
    )


def _adapters(prepared: Prepared) -> dict[str, Any]:
    """What adapters a checkpoint has, and what base it lacks; nothing where the model itself is trained."""
    lora = prepared.settings.model.adapters
    if lora is None:
        return {}
    digest = hashlib.sha256()
    for path in sorted(prepared.directory.glob("*.safetensors")):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(f"{path.name} {size}".encode())
            # Some places tell one model from another; a large one would take long to read whole.
            for part in range(_PLACES):
                file.seek(part * max(0, size - _PLACE_BYTES) // max(1, _PLACES - 1))
                digest.update(file.read(_PLACE_BYTES))
    shared = ("rank", "rslora", "targets", "exclude")
    given = {f"lora.{name}": getattr(lora, name) for name in shared} | {"lora scale": lora.scale}
    return {**given, "frozen weights (SHA-256 of samples)": digest.hexdigest()[:16]}


def _data(prepared: Prepared) -> dict[str, Any]:
    """What identifies the rows that are trained on, as the model gets them."""
    digest = hashlib.sha256()
    train = prepared.train
    rows = (torch.cat(pair) for pair in train.examples) if isinstance(train, EncodedExamples) else train.tokens
    for tokens in rows:
        digest.update(len(tokens).to_bytes(4, "little"))
        digest.update(tokens.to(torch.int32).numpy().tobytes())
    return {"rows of data.train": len(train), "their tokens (SHA-256)": digest.hexdigest()[:16]}
