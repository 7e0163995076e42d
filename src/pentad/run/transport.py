"""How weights travel in a run.

Invariant: a transport is chosen that the engines can receive from and the placement allows; what works everywhere is
taken last.
"""

from typing import TypedDict

import torch

from pentad.cluster.engines import Engines
from pentad.cluster.object_store import ObjectStore, StoreTransport
from pentad.errors import UserError
from pentad.run.prepare import Prepared
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.collective import CollectiveTransport
from pentad.weights.transport.protocol import Transport

# Of two buffers a process, unless a tensor is larger. Small ones let a small model travel while it is packed.
_BUFFER_BYTES = {"ipc": 1 << 30, "nccl": 512 << 20, "shared": 64 << 20}


def choose_transport(
    prepared: Prepared, store: ObjectStore, engines: Engines, *, on_gpus: bool, on_one_machine: bool, host: str
) -> Transport:
    """CUDA IPC on one GPU, NCCL between GPUs, host memory on one machine, otherwise Ray's object store.

    Args:
        on_gpus: every process that sends or receives has a GPU, or a part of one.
        on_one_machine: all processes that send or receive are on the driver's machine.
        host: address of the driver's machine.

    Raises:
        UserError: the engines can receive from none of what the placement allows.
    """
    allocation = prepared.allocation
    layout = allocation.trainer.layout
    takes = engines.features.transports
    if allocation.world_size == 1 and "ipc" in takes:
        return LocalTransport("ipc", **_terms("ipc", prepared, engines))
    if on_gpus and not allocation.colocated and "nccl" in takes:
        return CollectiveTransport("nccl", host, **_terms("nccl", prepared, engines))
    if on_one_machine and "shared" in takes:
        return LocalTransport("shared", **_terms("shared", prepared, engines))
    if "store" in takes:
        return StoreTransport(store, layout.pipeline, len(engines.names), engines.dtype)
    raise _none_fits(prepared, takes)


class _Terms(TypedDict):
    """What transports with buffers are told, each in the same words."""

    dtype: torch.dtype
    bucket_bytes: int
    stages: int
    receivers: int
    deadline_s: float


def _terms(kind: str, prepared: Prepared, engines: Engines) -> _Terms:
    return _Terms(
        dtype=engines.dtype,
        bucket_bytes=max(_BUFFER_BYTES[kind], _largest_bytes(prepared, engines.dtype)),
        stages=prepared.allocation.trainer.layout.pipeline,
        receivers=_receivers(prepared, engines),
        deadline_s=prepared.settings.trainer.deadline_s,
    )


def _largest_bytes(prepared: Prepared, dtype: torch.dtype) -> int:
    """Of the tensors that are sent."""
    shapes = expected_shapes(load_config(prepared.directory))
    return max(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize


def _receivers(prepared: Prepared, engines: Engines) -> int:
    """Processes that receive."""
    component = prepared.allocation.rollout
    if component is not None and engines.features.workers_receive:
        return component.layout.world
    return len(engines.names)


def _none_fits(prepared: Prepared, takes: frozenset[str]) -> UserError:
    component, engine = prepared.allocation.rollout, prepared.settings.rollout.engine
    name = f"rollout.engine={engine}" if engine or component is None else f"engine {component.backend}"
    listed = ", ".join(sorted(takes)) or "none"
    return UserError(
        f"{name} receives weights by {listed}; in allocation {prepared.allocation} they travel by store",
        "have its load_weights take the tensors of channel.receive(), and name store in EngineFeatures.transports",
    )
