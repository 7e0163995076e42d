"""The weight transport through Ray's object store, between real processes and without a model."""

import asyncio
import weakref
from typing import Any

import pytest
import torch
from ray.actor import ActorHandle

from pentad.cluster.gang import Gang
from pentad.cluster.object_store import ObjectStore, StoreChannel
from pentad.record.outcome import RunFailedError
from pentad.weights.checksum import checksum
from pentad.weights.transport.bucket import Bucket

# Of 400 bytes each, so two make a bucket.
STAGES = [{f"layer{stage}.{n}": torch.randn(100) * n for n in range(10)} for stage in range(2)]
ALL = STAGES[0] | STAGES[1]


def store(mailbox: Gang, deadline_s: float = 60.0) -> ObjectStore:
    return ObjectStore(mailbox.actors[0], deadline_s, bucket_bytes=1000, in_flight=2)


async def settled(*actors: ActorHandle) -> list[str]:
    """What each process is at, once that has not changed for a while."""
    before: list[str] = []
    while True:
        await asyncio.sleep(0.5)
        now = [await actor.activity.remote() for actor in actors]
        if now == before and all(now):
            return now
        before = now


def test_receivers_take_while_senders_send_and_all_bits_arrive(gangs: Any) -> None:
    senders, receivers, mailbox = gangs.trainers, gangs.engines, gangs.mailbox
    channel = store(mailbox).channel(2, 2, None)

    async def drive() -> None:
        sending = asyncio.ensure_future(senders.call_each("send", [(channel, part) for part in STAGES], "sending"))
        # Of five buckets two are on their way, and no third one is begun.
        assert await settled(*senders.actors) == ["sending layer0.4", "sending layer1.4"]
        taken = asyncio.ensure_future(receivers.call_rank(0, "receive", channel, phase="receiving"))
        # One receiver alone does not make room.
        assert await settled(*senders.actors) == ["sending layer0.4", "sending layer1.4"]
        others = await receivers.call_rank(0, "receive", channel, phase="receiving")
        for found in (await taken, others):
            assert found.keys() == ALL.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in ALL.items())
        sums = await sending
        assert sums[0] | sums[1] == {name: checksum(tensor) for name, tensor in ALL.items()}

    asyncio.run(drive())


def test_tensors_are_cast_before_their_checksums_are_taken(gangs: Any) -> None:
    senders, receivers, mailbox = gangs.trainers, gangs.engines, gangs.mailbox
    channel = store(mailbox).channel(1, 1, torch.bfloat16)

    async def drive() -> None:
        sums, found = await asyncio.gather(
            senders.call_rank(0, "send", channel, STAGES[0], phase="sending"),
            receivers.call_rank(0, "receive", channel, phase="receiving"),
        )
        expected = {name: tensor.bfloat16() for name, tensor in STAGES[0].items()}
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert sums == {name: checksum(tensor) for name, tensor in expected.items()}

    asyncio.run(drive())


def test_a_receiver_holds_no_bucket_while_it_waits(gangs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[weakref.ref[Bucket]] = []
    held: list[int] = []
    wait = StoreChannel._wait

    def watched(self: StoreChannel, ref: Any, problem: str) -> Any:
        held.append(sum(bucket() is not None for bucket in received))
        answer = wait(self, ref, problem)
        if isinstance(answer, Bucket):
            received.append(weakref.ref(answer))
        return answer

    monkeypatch.setattr(StoreChannel, "_wait", watched)
    channel = store(gangs.mailbox).channel(1, 1, None)

    def receive() -> list[str]:
        return [name for name, _ in channel.receive()]

    async def drive() -> None:
        sending = gangs.trainers.call_rank(0, "send", channel, STAGES[0], phase="sending")
        _, names = await asyncio.gather(sending, asyncio.to_thread(receive))
        assert names == list(STAGES[0])

    asyncio.run(drive())
    assert len(received) == 5
    assert held == [0] * 11


def test_waits_have_a_deadline_that_names_the_tensor(gangs: Any) -> None:
    senders, receivers, mailbox = gangs.trainers, gangs.engines, gangs.mailbox
    late = store(mailbox, deadline_s=1.0)

    async def drive() -> None:
        who = r"trainer rank 0 failed during sending: TransportTimeoutError: "
        with pytest.raises(RunFailedError, match=who + r".*make room after tensors layer0\.2 to layer0\.3 within 1 s"):
            await senders.call_rank(0, "send", late.channel(1, 1, None), STAGES[0], phase="sending")
        who = r"rollout engine 0 failed during receiving: TransportTimeoutError: "
        with pytest.raises(RunFailedError, match=who + "no tensor arrived within 1 s"):
            await receivers.call_rank(0, "receive", late.channel(1, 1, None), phase="receiving")
        channel = late.channel(2, 1, None)
        with pytest.raises(RunFailedError, match=who + r"no tensor arrived after layer0\.9 within 1 s"):
            await asyncio.gather(
                senders.call_rank(0, "send", channel, STAGES[0], phase="sending"),
                receivers.call_rank(0, "receive", channel, phase="receiving"),
            )

    asyncio.run(drive())


def test_a_closed_channel_lets_nobody_wait(gangs: Any) -> None:
    senders, receivers, mailbox = gangs.trainers, gangs.engines, gangs.mailbox
    channel = store(mailbox).channel(1, 2, None)

    async def drive() -> None:
        calls = [
            asyncio.ensure_future(senders.call_rank(0, "send", channel, STAGES[0], phase="sending")),
            asyncio.ensure_future(receivers.call_rank(0, "receive", channel, phase="receiving")),
        ]
        await settled(senders.actors[0], receivers.actors[0])
        channel.close("an engine failed")
        for call in calls:
            with pytest.raises(RunFailedError, match="ChannelClosedError: the weight channel was closed: an engine f"):
                await call
        with pytest.raises(RunFailedError, match="an engine failed"):
            await receivers.call_rank(0, "receive", channel, phase="receiving")

    asyncio.run(drive())
