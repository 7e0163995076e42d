"""Which way weights go, and that an engine which takes none of the ways is refused before anything is trained."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pentad.cluster.object_store import ObjectStore, StoreTransport
from pentad.config.schema.run import RunSettings
from pentad.engines.protocol import EngineFeatures
from pentad.errors import UserError
from pentad.families.builtin import builtin_config
from pentad.layout import parse_allocation
from pentad.run.transport import choose_transport


def choose(
    directory: Path,
    allocation: str,
    takes: set[str],
    engine: str | None = None,
    *,
    near: bool = True,
    gpus: bool = False,
    transport: str = "auto",
) -> Any:
    settings = RunSettings.model_validate(
        {
            "experiment": {"name": "transport"},
            "model": {"path": str(directory)},
            "data": {"train": "none.jsonl"},
            "trainer": {"total_steps": 1},
            "rollout": {"engine": engine, "transport": transport},
        }
    )
    # What the choice reads of a prepared run.
    prepared: Any = SimpleNamespace(settings=settings, allocation=parse_allocation(allocation), directory=directory)
    engines: Any = SimpleNamespace(
        features=EngineFeatures(frozenset(takes)), names=["rollout engine 0"], dtype=torch.float32
    )
    actor: Any = None
    return choose_transport(
        prepared, ObjectStore(actor, 60.0), engines, on_gpus=gpus, on_one_machine=near, host="127.0.0.1"
    )


def test_memory_of_one_device_is_shared_then_that_of_one_machine_and_all_else_goes_through_the_store(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(builtin_config("llama")))
    both = {"ipc", "store"}
    assert choose(tmp_path, "vllm:d1|megatron:d1", both, gpus=True).name == "ipc"
    assert isinstance(choose(tmp_path, "vllm:d1+megatron:d1", both), StoreTransport)
    assert isinstance(choose(tmp_path, "hf:d1|megatron:d1", {"store"}), StoreTransport)
    near = choose(tmp_path, "hf:d2+megatron:p3", {"shared", "store"})
    assert near.name == "shared"
    channel = near.open(1)
    assert (channel.stages, channel.receivers, channel.dtype) == (3, 1, torch.float32)
    near.close()
    # Sockets are files of the driver's machine.
    assert choose(tmp_path, "vllm:d1|megatron:d1", {"ipc", "shared", "store"}, near=False, gpus=True).name == "store"
    assert choose(tmp_path, "hf:d2+megatron:p3", {"shared", "store"}, near=False).name == "store"


def test_nccl_joins_gpus_that_are_apart_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(builtin_config("llama")))
    all_of_them = {"ipc", "nccl", "shared", "store"}
    for near in (True, False):
        apart = choose(tmp_path, "vllm:d2+megatron:p3", all_of_them, near=near, gpus=True, transport="nccl")
        channel = apart.open(7)
        assert (apart.name, channel.stages, channel.version, channel.number) == ("nccl", 3, 7, 1)
        apart.close()
    # Sender and receiver may be on one GPU, which NCCL refuses.
    for allocation, gpus in (("vllm:d2|megatron:d2", True), ("hf:d2+megatron:p3", False)):
        with pytest.raises(UserError, match="needs GPUs, and engines on others than the trainer's"):
            choose(tmp_path, allocation, all_of_them, gpus=gpus, transport="nccl")
    assert choose(tmp_path, "vllm:d2|megatron:d2", all_of_them, gpus=True).name == "shared"
    assert choose(tmp_path, "vllm:d2|megatron:d2", all_of_them, near=False, gpus=True).name == "store"
    assert choose(tmp_path, "vllm:d1|megatron:d1", all_of_them, gpus=True).name == "ipc"
    assert choose(tmp_path, "vllm:d1|megatron:d1", all_of_them, gpus=True, transport="store").name == "store"
    with pytest.raises(UserError, match=r"rollout.transport=shared is not among what the engine receives by: store"):
        choose(tmp_path, "hf:d1+megatron:d1", {"store"}, transport="shared")


@pytest.mark.parametrize(
    ("allocation", "takes", "listed"),
    [
        ("hf:d1+megatron:d2", {"shared"}, "by shared;"),
        ("hf:d1+megatron:d1", {"ipc"}, "by ipc;"),
        ("hf:d1+megatron:d1", set(), "by none;"),
    ],
)
def test_an_engine_that_takes_no_such_transport_is_refused(
    tmp_path: Path, allocation: str, takes: set[str], listed: str
) -> None:
    with pytest.raises(UserError) as refused:
        choose(tmp_path, allocation, takes, "mine:Engine", near=False)
    assert refused.value.cause.startswith("rollout.engine=mine:Engine receives weights " + listed)
    assert "name store in EngineFeatures.transports" in refused.value.fix
