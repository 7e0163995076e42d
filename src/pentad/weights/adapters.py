"""Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Invariant: what is written is what PEFT would write for the same modules, and what is read is used as it was trained: a
kind of adapter that Pentad does not compute, another rank or another scale is refused. Names inside Pentad are PEFT's
without the prefix `base_model.model.`.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from pentad.config.schema.lora import LoraSettings
from pentad.errors import UserError
from pentad.families.lora import A, B, is_adapter
from pentad.weights.block_files import BlockReader
from pentad.weights.hf_files import TensorSource
from pentad.weights.mapping import WeightMapping, expected_shapes
from pentad.weights.source import companion_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Fields that change what an adapter computes, and the only values of them that Pentad computes.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
}


def adapter_shapes(config: PreTrainedConfig, mapping: WeightMapping, rank: int) -> dict[str, tuple[int, int]]:
    """Shape of each matrix of the adapters of a model, by Hugging Face name."""
    shapes = expected_shapes(config)
    found = {}
    for module in mapping.adapted_modules():
        out, inner = shapes[f"{module}.weight"]
        found[module + A], found[module + B] = (rank, inner), (out, rank)
    return found


class InitialAdapter:
    """What adapters begin with: A random, B zero. A tensor depends on its name and the seed, not on the layout."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], settings: LoraSettings, seed: int) -> None:
        self._shapes, self._settings, self._seed = shapes, settings, seed

    def get(self, name: str) -> Tensor:
        """Float32, `[rank, in]` or `[out, rank]`."""
        tensor = torch.zeros(self._shapes[name])
        if name.endswith(B):
            return tensor
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if self._settings.init == "gaussian":
            return tensor.normal_(std=1 / self._settings.rank, generator=random)
        # torch.nn.Linear's own: Kaiming's uniform with a gain of sqrt(1/3).
        bound = 1 / math.sqrt(tensor.shape[1])
        return tensor.uniform_(-bound, bound, generator=random)


class AdapterReader:
    """The tensors of an adapter's directory.

    Raises:
        UserError: there is none, or it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.config: dict[str, Any] = json.loads((directory / CONFIG).read_text())
            with safe_open(directory / WEIGHTS, framework="pt") as handle:
                names = {_inner_name(name): name for name in handle.keys()}  # noqa: SIM118 - not a dict
                self._names = names
                self.shapes = {name: tuple(handle.get_slice(key).get_shape()) for name, key in names.items()}
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"cannot read an adapter from {directory}: {error}",
                f"give a directory with {CONFIG} and {WEIGHTS}, as PEFT writes it",
            ) from None

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU, in its stored dtype."""
        with safe_open(self.directory / WEIGHTS, framework="pt") as handle:
            return handle.get_tensor(self._names[name])

    def check(self, settings: LoraSettings, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse an adapter that is another than the settings say.

        Args:
            expected: shape of each tensor by name.

        Raises:
            UserError: with the fields or tensors that differ.
        """
        check_plain(self.config, str(self.directory))
        own = peft_scale(self.config)
        if self.config["r"] != settings.rank or not math.isclose(own, settings.scale):
            raise UserError(
                f"{self.directory} has rank {self.config['r']} and scale {own:g}; model.lora has {settings.rank} and "
                f"{settings.scale:g}",
                "set model.lora.rank, alpha and rslora to those of the adapter",
            )
        check_shapes(self.shapes, expected, str(self.directory))


def check_plain(config: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        UserError: an adapter, by its configuration, is one that Pentad does not compute.
    """
    problems = [
        f"{name} is {config[name]!r}, which Pentad does not compute"
        for name, values in _PLAIN.items()
        if name in config and config[name] not in values
    ]
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}", "use a plain LoRA adapter")


def open_adapter(
    config: PreTrainedConfig, mapping: WeightMapping, settings: LoraSettings | None, seed: int
) -> TensorSource | None:
    """What a model's adapters begin with: those of `settings.adapter`, or new ones. None without LoRA.

    Raises:
        UserError: the adapter does not fit the model or the settings.
    """
    if settings is None:
        return None
    shapes = adapter_shapes(config, mapping, settings.rank)
    if settings.adapter is None:
        return InitialAdapter(shapes, settings, seed)
    reader = AdapterReader(settings.adapter)
    reader.check(settings, shapes)
    return reader


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """
    Raises:
        UserError: a tensor is missing, unexpected or misshapen.
    """
    problems = [f"missing tensor {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected tensor {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"tensor {name} has shape {list(found[name])}, expected {list(expected[name])}"
        for name in sorted(found.keys() & expected.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{where} does not fit the model and model.lora:\n  " + "\n  ".join(problems[:8]) + more,
            "set model.lora.targets and exclude to what the adapter has",
        )


def peft_scale(config: Mapping[str, Any]) -> float:
    """What `B A x` is multiplied by, from an adapter's configuration."""
    rank = config["r"]
    return config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)


def peft_config(settings: LoraSettings, base: str, modules: Iterable[str]) -> dict[str, Any]:
    """The contents of `adapter_config.json`.

    Args:
        base: where the model is that the adapter belongs to.
        modules: that are adapted, by their whole names.
    """
    targets: Any = settings.targets
    if isinstance(targets, str):
        # PEFT's own `all-linear` depends on how transformers builds the model; names do not.
        targets = sorted({module.rpartition(".")[2] for module in modules}) if targets == "all-linear" else targets
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.rank if settings.alpha is None else settings.alpha,
        "use_rslora": settings.rslora,
        "lora_dropout": settings.dropout,
        "init_lora_weights": "gaussian" if settings.init == "gaussian" else True,
        "target_modules": targets,
        "exclude_modules": settings.exclude or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def write_adapter_directory(
    tensors: Iterable[tuple[str, Tensor]], target: Path, settings: LoraSettings, base: Path, companions: Iterable[Path]
) -> None:
    """Write an adapter as PEFT does, complete or not at all.

    Args:
        tensors: name and matrix, streamed.
        target: the directory; must not exist yet.
        base: the model that the adapter belongs to.
        companions: files to copy beside the adapter (tokenizer, generation settings).

    Raises:
        UserError: the target exists, or cannot be written.
    """
    if target.exists():
        raise UserError(f"{target} exists already", "choose another directory, or move it away")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # What the other side of the channel raises is not the disk's fault.
    matrices = dict(tensors)
    try:
        partial.mkdir(parents=True)
        modules = [name.removesuffix(A) for name in matrices if name.endswith(A)]
        write_adapter(matrices.items(), partial, peft_config(settings, str(base), modules))
        for path in companions:
            shutil.copy(path, partial / path.name)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write the adapter to {target}: {reason}", "free space there, or check its permissions"
        ) from None


def export_adapter(directory: Path, settings: LoraSettings, base: Path, target: Path) -> None:
    """Write the adapter of a checkpoint as PEFT does.

    Args:
        directory: of the checkpoint's blocks, of any layout, as `policy` of a checkpoint.
        base: the model that the adapter belongs to.

    Raises:
        UserError: the checkpoint lacks parts of it; the target exists, or cannot be written.
    """
    reader = BlockReader(directory)
    tensors = ((name, reader.get(name)) for name in sorted(reader.shapes))
    write_adapter_directory(tensors, target, settings, base, companion_files(base))


def write_adapter(tensors: Iterable[tuple[str, Tensor]], directory: Path, config: Mapping[str, Any]) -> None:
    """Write an adapter as PEFT does. The directory must exist."""
    whole = {_PREFIX + name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors}
    save_file(whole, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(directory.stat().st_mode & 0o666)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`W + s B A`, computed in float32 and rounded once.

    Args:
        weight, a, b: `[..., out, in]`, `[..., rank, in]`, `[..., out, rank]`.
    """
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def _inner_name(name: str) -> str:
    inner = name.removeprefix(_PREFIX)
    # An adapter that was saved from a model, not by PEFT's own function, has the adapter's name in its keys.
    inner = inner.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
    if not is_adapter(inner):
        raise ValueError(f"{name} is no matrix of a linear module's adapter")
    return inner
