"""What planning knows of GPUs. Published figures of the SXM variants."""

import difflib
from dataclasses import dataclass, replace

from pentad.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and the usual machine around it.

    Attributes:
        name: as the user writes it.
        memory_gib: what a process can allocate, in GiB.
        tflops: dtype -> dense matrix products, 10^12 floating-point operations per second; fp32 without TF32.
        hbm_gbs: memory bandwidth, 10^9 bytes per second.
        nvlink_gbs: to other GPUs of its machine, each direction, 10^9 bytes per second.
        network_gbs: to other machines, each GPU and direction, 10^9 bytes per second.
        per_node: GPUs of a machine.
    """

    name: str
    memory_gib: float
    tflops: dict[str, float]
    hbm_gbs: float
    nvlink_gbs: float
    network_gbs: float
    per_node: int = 8


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 79.2, {"bf16": 312, "fp32": 19.5}, hbm_gbs=2039, nvlink_gbs=300, network_gbs=25),
        Gpu("h100", 79.1, {"bf16": 989, "fp32": 67}, hbm_gbs=3350, nvlink_gbs=450, network_gbs=50),
        Gpu("h200", 139.8, {"bf16": 989, "fp32": 67}, hbm_gbs=4800, nvlink_gbs=450, network_gbs=50),
        Gpu("b200", 178.3, {"bf16": 2250, "fp32": 75}, hbm_gbs=8000, nvlink_gbs=900, network_gbs=50),
    )
}


def gpu_of(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        UserError: it is not in the table.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1)
        fix = f"did you mean {near[0]}? Known are {', '.join(GPUS)}" if near else f"use one of {', '.join(GPUS)}"
        raise UserError(f"gpu: {name!r} is not known", fix)
    return gpu


def gpu_called(name: str, memory_gib: float, per_node: int) -> Gpu | None:
    """A GPU as its driver calls it ("NVIDIA H100 80GB HBM3"); None for a kind that is not in the table."""
    words = name.lower().replace("-", " ").split()
    known = next((gpu for gpu in GPUS.values() if gpu.name in words), None)
    return None if known is None else replace(known, memory_gib=memory_gib, per_node=per_node)
