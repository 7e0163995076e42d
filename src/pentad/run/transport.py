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
    """CUDA IPC on one GPU, host memory on one machine, otherwise Ray's object store; or what `rollout.transport` names.

    Args:
        on_gpus: every process that sends or receives has a GPU, or a part of one.
        on_one_machine: all processes that send or receive are on the driver's machine.
        host: address of the driver's machine.

    Raises:
        UserError: the engines can receive from none of what the placement allows, or not from what is asked for.
    """
    allocation, wanted = prepared.allocation, prepared.settings.rollout.transport
    takes = engines.features.transports
    # In order of preference. NCCL is taken where it is asked for: it has not been run on two GPUs yet.
    fits = {
        "ipc": (
            allocation.world_size == 1 and on_gpus and on_one_machine,
            "one GPU that trainer and engine share, on the driver's machine",
        ),
        "shared": (on_one_machine, "one machine"),
        "store": (True, ""),
        "nccl": (on_gpus and not allocation.colocated, "GPUs, and engines on others than the trainer's"),
    }
    if wanted == "auto":
        names = [name for name, (fit, _) in fits.items() if fit and name in takes and name != "nccl"]
        if not names:
            raise _none_fits(prepared, takes)
        name = names[0]
    else:
        name, (fit, needs) = wanted, fits[wanted]
        if not fit or name not in takes:
            reason = f"needs {needs}" if not fit else f"is not among what the engine receives by: {_listed(takes)}"
            raise UserError(
                f"rollout.transport={name} {reason} (allocation {allocation})", "set rollout.transport=auto"
            )
    if name == "store":
        return StoreTransport(store, allocation.trainer.layout.pipeline, len(engines.names), engines.dtype)
    terms = _terms(name, prepared, engines)
    if name == "nccl":
        return CollectiveTransport("nccl", host, **terms)
    return LocalTransport("ipc" if name == "ipc" else "shared", **terms)


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
    return UserError(
        f"{name} receives weights by {_listed(takes)}; in allocation {prepared.allocation} they travel by store",
        "have its load_weights take the tensors of channel.receive(), and name store in EngineFeatures.transports",
    )


def _listed(takes: frozenset[str]) -> str:
    return ", ".join(sorted(takes)) or "none"
