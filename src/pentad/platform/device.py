"""What differs between a machine with CUDA and one without: device, collective backend, default precision.

Invariant: the answer is the same for every caller in a process, and asking twice changes nothing.
"""

import logging
import sys
import warnings
from dataclasses import dataclass
from typing import Literal

import torch

DTypeName = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Platform:
    """Where this process computes.

    Attributes:
        device: `cuda:i` or `cpu`.
        backend: the torch.distributed backend for its tensors.
    """

    device: torch.device
    backend: Literal["nccl", "gloo"]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def dtype(self, name: DTypeName) -> torch.dtype:
        """`auto` is float32 on the CPU and bfloat16 on a GPU."""
        if name == "auto":
            return torch.bfloat16 if self.is_cuda else torch.float32
        return torch.float32 if name == "fp32" else torch.bfloat16

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def find_platform(device_index: int = 0) -> Platform:
    """The device of this process.

    Args:
        device_index: which of the visible GPUs this process uses.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", device_index)
        torch.cuda.set_device(device)
        return Platform(device, "nccl")
    return Platform(torch.device("cpu"), "gloo")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, for which the host does not wait. Pageable memory would make it wait for earlier work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def enter_platform(device_index: int = 0) -> Platform:
    """The device of this process; where there is no CUDA, Megatron is made to run on the CPU in this thread."""
    # Megatron warns on import about every optional package that Pentad does without on purpose.
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    # torch warns of a CUDA toolkit without a GPU, for the compiling of extensions.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    platform = find_platform(device_index)
    # Megatron hands small functions to torch.compile, which needs a C compiler on the user's machine. The CPU platform
    # has another torch.compile, so that torch's compiler need not be imported.
    if platform.is_cuda or "torch._dynamo" in sys.modules:
        torch.compiler.set_stance("force_eager")
    if not platform.is_cuda:
        from pentad.platform import cpu

        cpu.enter()
    return platform
