"""Which version of each operation runs here, and why.

Invariant: on the CPU every operation is the plain version. A choice depends on the device, the dtype, the installed
packages and the setting alone, so all ranks of one machine make the same choice.
"""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch

KernelSetting = Literal["auto", "torch"]

# What `pentad[kernels]` installs: module -> distribution.
_PACKAGES = {"quack": "quack-kernels", "flash_attn.cute": "flash-attn-4"}
_INSTALL = "pip install 'pentad[kernels]'"


@dataclass(frozen=True)
class Kernels:
    """The version of each operation.

    Attributes:
        linear: `accumulate` adds a weight's gradient to its float32 buffer inside the matrix product.
        mlp: `torch`, `triton` and `quack` compute SwiGLU MLPs as one operation; see `gated_mlp`.
        attention: `varlen` is torch's kernel for packed sequences, `flash4` is FlashAttention 4.
        rotary: `triton` rotates in one pass.
        norm: `triton` is one pass each way.
        logprob: `triton` reads each chunk of logits once.
        experts: `triton` computes the experts' SwiGLU in one pass.
        optimizer: `fused` is torch's fused AdamW with clipping inside.
    """

    linear: Literal["plain", "accumulate"] = "plain"
    mlp: Literal["plain", "torch", "triton", "quack"] = "plain"
    attention: Literal["plain", "varlen", "flash4"] = "plain"
    rotary: Literal["plain", "triton"] = "plain"
    norm: Literal["plain", "triton"] = "plain"
    logprob: Literal["plain", "triton"] = "plain"
    experts: Literal["plain", "triton"] = "plain"
    optimizer: Literal["plain", "fused"] = "plain"


PLAIN = Kernels()


@dataclass(frozen=True)
class Reason:
    """Why an operation has its version; `missing` says what a faster one needs, empty if there is none."""

    operation: str
    version: str
    missing: str


def select_kernels(
    device: torch.device, dtype: torch.dtype, setting: KernelSetting = "auto", *, deterministic: bool = False
) -> Kernels:
    """The fastest versions that run on a device.

    Args:
        device: where the model computes.
        dtype: of its activations.
        setting: `torch` uses nothing but torch and the Triton that comes with it.
        deterministic: leave out what does not compute the same bits again (FlashAttention's backward).
    """
    if device.type != "cuda":
        return PLAIN
    half = dtype in (torch.bfloat16, torch.float16)
    triton = "triton" if no_triton() == "" else None
    packages = setting == "auto" and half
    quack = packages and no_package("quack", device) == ""
    flash = packages and not deterministic and no_package("flash_attn.cute", device) == ""
    return Kernels(
        linear="accumulate",
        mlp="quack" if quack else (triton or "torch"),
        attention=("flash4" if flash else "varlen") if half else "plain",
        rotary=triton or "plain",
        norm=triton or "plain",
        logprob=triton or "plain",
        experts=triton or "plain",
        optimizer="fused",
    )


def explain(kernels: Kernels, device: torch.device) -> list[Reason]:
    """What each operation of a selection runs with, and what a faster version needs."""
    if device.type != "cuda":
        return [Reason(name, value, "a GPU") for name, value in vars(kernels).items()]
    triton, quack, flash = no_triton(), no_package("quack", device), no_package("flash_attn.cute", device)
    missing = {
        "mlp": "" if kernels.mlp == "quack" else (quack or triton),
        "attention": "" if kernels.attention == "flash4" else flash,
        "rotary": triton,
        "norm": triton,
        "logprob": triton,
        "experts": triton,
    }
    return [Reason(name, value, missing.get(name, "")) for name, value in vars(kernels).items()]


@cache
def no_triton() -> str:
    """Why Triton's kernels cannot be compiled here; empty if they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton, which torch's wheels for Linux install"
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return "" if compiler else "a C compiler (gcc or clang), which Triton starts its kernels through"


@cache
def no_package(module: str, device: torch.device) -> str:
    """Why a package of `pentad[kernels]` cannot be used on a device; empty if it can."""
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "a Hopper GPU (H100, H200)"
    try:
        version(_PACKAGES[module])
    except PackageNotFoundError:
        if importlib.util.find_spec(module.split(".")[0]) is None:
            return _INSTALL
    try:
        __import__(module)
        __import__({"quack": "quack.gemm_interface", "flash_attn.cute": "flash_attn.cute.interface"}[module])
    except Exception as error:
        # Versions that do not work together fail at import, in many ways; the plain version still works.
        sys.modules.pop(module, None)
        return f"a working {_PACKAGES[module]} ({type(error).__name__}: {error})"
    return ""
