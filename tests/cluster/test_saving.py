"""Real trainer ranks save while they train on, and go on from what they saved; a disk that is full ends no process."""

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

from pentad.algorithms.sft import SFTLoss
from pentad.config.schema.algorithms import SFTSettings
from pentad.errors import UserError
from pentad.samples.batch import Batch
from pentad.weights.block_files import BlockReader, WriteError

LOSS = SFTLoss(SFTSettings())
FILES = ["policy/rank-00000.safetensors", "policy/rank-00001.safetensors"]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[Any, Path], None]:
    def run(parts: Any, tmp_path: Path) -> None:
        asyncio.run(test(parts.trainers, tmp_path))

    return run


def batch() -> Batch:
    random = torch.Generator().manual_seed(5)
    return Batch.from_sequences([(torch.randint(1, 9, (3,), generator=random), torch.arange(1, 6)) for _ in range(4)])


def silent(done: int) -> None:
    pass


@in_loop
async def test_training_goes_on_during_a_save_and_after_it(trainers: Any, folder: Path) -> None:
    policy = trainers.role("policy")
    await trainers.reserve_save()
    await policy.train(batch(), LOSS, 1.0, silent)
    started = await trainers.start_save(folder)
    steps = started.counters["policy"]["schedule"]
    assert steps >= 1 and started.counters == {"policy": {"updates": steps, "schedule": steps}}
    assert 0 < started.seconds < 10
    trained, written = await asyncio.gather(policy.train(batch(), LOSS, 1.0, silent), trainers.finish_save())
    assert sorted(written) == FILES
    for name, record in written.items():
        data = (folder / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(data), sha256(data).hexdigest())
    stored = BlockReader(folder / "policy")
    # Masters and two moments.
    elements = sum(stored.get(name).numel() for name in stored.names())
    assert started.bytes == 3 * 4 * elements
    scores = await policy.logprobs(batch(), 1.0, silent)
    await policy.train(batch(), LOSS, 1.0, silent)
    await trainers.restore(folder, started.counters)
    again = await policy.train(batch(), LOSS, 1.0, silent)
    assert again.metrics == trained.metrics
    assert torch.equal(await policy.logprobs(batch(), 1.0, silent), scores)


@in_loop
async def test_a_full_disk_is_told_when_all_ranks_have_stopped(trainers: Any, folder: Path) -> None:
    (folder / "policy").mkdir()
    (folder / FILES[1]).symlink_to("/dev/full")
    started = await trainers.start_save(folder)
    with pytest.raises(WriteError) as caught:
        await trainers.finish_save()
    assert caught.value.is_full and caught.value.errno == errno.ENOSPC
    for part in (str(folder / FILES[1]), "No space left on device", os.uname().nodename):
        assert part in caught.value.cause
    assert (folder / FILES[0]).stat().st_size > 0
    # The next is a save like any other.
    (folder / FILES[1]).unlink()
    assert (await trainers.start_save(folder)).bytes == started.bytes
    assert sorted(await trainers.finish_save()) == FILES


@in_loop
async def test_directories_that_do_not_serve(trainers: Any, folder: Path) -> None:
    counters = {"policy": {"updates": 1, "schedule": 1}}
    with pytest.raises(UserError, match=r"experiment.dir: machine .* does not see .*/gone"):
        await trainers.start_save(folder / "gone")
    with pytest.raises(UserError, match=r"does not see .*/policy"):
        await trainers.restore(folder, counters)
    (folder / "policy").mkdir()
    with pytest.raises(UserError, match=r"policy holds no \*\.safetensors file"):
        await trainers.restore(folder, counters)
    with pytest.raises(UserError, match="has no policy model"):
        await trainers.restore(folder, {})


def test_write_errors_cross_processes() -> None:
    error = cloudpickle.loads(cloudpickle.dumps(WriteError("a", "b", errno.ENOSPC)))
    assert (error.cause, error.fix, error.is_full) == ("a", "b", True)
