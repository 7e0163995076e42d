"""`pentad doctor`: what is installed, what the machine has, and whether it works. Nothing is downloaded."""

import importlib.util
import os
import platform
import shutil
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

# distribution -> module
_NEEDED = {
    "torch": "torch",
    "megatron-core": "megatron.core",
    "transformers": "transformers",
    "safetensors": "safetensors",
    "ray": "ray",
    "datasets": "datasets",
    "pyarrow": "pyarrow",
    "math-verify": "math_verify",
    "tensorboard": "tensorboard",
}
_OPTIONAL = {
    "reasoning-gym": "reasoning_gym",
    "wandb": "wandb",
    "mlflow-skinny": "mlflow",
    "swanlab": "swanlab",
    "vllm": "vllm",
    "quack-kernels": "quack",
    "flash-attn-4": "flash_attn.cute",
}


def examine() -> int:
    """Print the findings; return 0, or 1 if a package that Pentad needs cannot be imported."""
    console = Console(highlight=False)
    table = Table("package", "version", "state", box=None, pad_edge=False)
    failures = []
    for name, module in _NEEDED.items():
        found, state = _state(name, module)
        table.add_row(name, found, state)
        if state != "ok":
            failures.append(name)
    for name in _OPTIONAL:
        found = _version(name)
        table.add_row(name, found or "-", "installed" if found else "not installed (optional)")

    own = _version("pentad") or "(version unknown: it is not installed)"
    console.print(f"pentad {own}, Python {platform.python_version()}, {platform.platform()}")
    console.print(table)
    console.print(_machine())
    console.print(_accelerators() if "torch" not in failures else "GPU: unknown, as torch cannot be imported")
    if "torch" not in failures:
        console.print(_kernels())
    if failures:
        console.print(f"Not working: {', '.join(failures)}. Run `make bootstrap`, or reinstall them with uv sync.")
        return 1
    console.print("All that Pentad needs is there.")
    return 0


def _state(name: str, module: str) -> tuple[str, str]:
    found = _version(name)
    if found is None and not _is_there(module):
        return "-", "not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        # An error inside another package is a finding here, not a fault of Pentad.
        return found or "?", f"cannot be imported: {type(error).__name__}: {error}"
    return found or "unknown", "ok"


def _version(name: str) -> str | None:
    """The installed version; None where the package has no metadata, or metadata without a version."""
    try:
        return version(name) or None
    except (PackageNotFoundError, KeyError, ValueError, OSError):
        return None


def _is_there(module: str) -> bool:
    """Whether a package can be found, though it may have no metadata (a directory on PYTHONPATH)."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _machine() -> str:
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"CPU: {cores} cores; memory {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free; "
        f"disk {disk.free / 2**30:.1f} GiB free here"
    )


def _kernels() -> str:
    """Which version of each operation of a bfloat16 training step runs here, and what a faster one needs."""
    import torch

    from pentad.kernels.selection import explain, select_kernels

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        return "Kernels: plain PyTorch, as there is no GPU"
    lines = ["Kernels (trainer.kernels=auto):"]
    for reason in explain(select_kernels(device, torch.bfloat16), device):
        faster = f"; faster with {reason.missing}" if reason.missing else ""
        lines.append(f"  {reason.operation}: {reason.version}{faster}")
    return "\n".join(lines)


def _accelerators() -> str:
    import torch

    if not torch.cuda.is_available():
        return "GPU: none; runs use CPU processes"
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if properties.major >= 8 else "no bf16"
        lines.append(f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    return "\n".join(lines)
