"""How weights travel in a run.

Invariant: a transport is chosen that the engines can receive from and the placement allows; what works everywhere is
taken last.
"""

import torch

from pentad.cluster.engines import Engines
from pentad.cluster.object_store import ObjectStore, StoreTransport
from pentad.errors import UserError
from pentad.run.prepare import Prepared
from pentad.weights.mapping import expected_shapes
from pentad.weights.source import load_config
from pentad.weights.transport.channel import LocalTransport
from pentad.weights.transport.protocol import Transport

# Of two buffers; no tensor may be larger.
_BUFFER_BYTES = 1 << 30


def choose_transport(prepared: Prepared, store: ObjectStore, engines: Engines) -> Transport:
    """CUDA IPC where trainer and engine are two processes on one GPU, otherwise Ray's object store.

    Raises:
        UserError: the engines can receive from neither.
    """
    allocation = prepared.allocation
    layout = allocation.trainer.layout
    takes = engines.features.transports
    if allocation.world_size > 1 or "ipc" not in takes:
        if "store" not in takes:
            raise _none_fits(prepared, takes)
        return StoreTransport(store, layout.pipeline, len(engines.names), engines.dtype)
    shapes = expected_shapes(load_config(prepared.directory))
    largest = max(torch.Size(shape).numel() for shape in shapes.values()) * engines.dtype.itemsize
    return LocalTransport(
        "ipc", engines.dtype, max(_BUFFER_BYTES, largest), deadline_s=prepared.settings.trainer.deadline_s
    )


def _none_fits(prepared: Prepared, takes: frozenset[str]) -> UserError:
    component, engine = prepared.allocation.rollout, prepared.settings.rollout.engine
    name = f"rollout.engine={engine}" if engine or component is None else f"engine {component.backend}"
    listed = ", ".join(sorted(takes)) or "none"
    return UserError(
        f"{name} receives weights by {listed}; in allocation {prepared.allocation} they travel by store",
        "have its load_weights take the tensors of channel.receive(), and name store in EngineFeatures.transports",
    )
