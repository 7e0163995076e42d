"""Weights over process groups of their own, between real processes: every bit arrives, and every wait ends."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from pentad.weights.checksum import checksum
from pentad.weights.transport.collective import CollectiveChannel, CollectiveTransport
from pentad.weights.transport.groups import HELD
from pentad.weights.transport.protocol import TransportError

CPU = torch.device("cpu")
SPAWN = multiprocessing.get_context("spawn")
PATIENCE_S = 60


def tensors(count: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"w{i}": torch.randn(7 + i, 5, generator=generator) for i in range(count)}


def _receive(channel: CollectiveChannel, name: str, die_after: int) -> Any:
    sums = {}
    reception = channel.reception(CPU, name)
    for number, bucket in enumerate(reception.buckets()):
        if number == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        sums |= {name: checksum(tensor) for name, tensor in bucket}
    assert sums == reception.checksums
    return sums


def _serve(name: str, asked: Any, answers: Any) -> None:
    """A receiver: takes one publication after the other."""
    while (order := asked.get()) is not None:
        try:
            answers.put(_receive(order[0], name, order[1]))
        except TransportError as error:
            answers.put(str(error))


class Receiver:
    """A process that receives."""

    def __init__(self, name: str) -> None:
        self.asked, self.answers = SPAWN.Queue(), SPAWN.Queue()
        self.process = SPAWN.Process(target=_serve, args=(name, self.asked, self.answers), daemon=True)
        self.process.start()

    def ask(self, channel: CollectiveChannel, die_after: int = -1) -> None:
        self.asked.put((channel, die_after))

    def answer(self) -> Any:
        return self.answers.get(timeout=PATIENCE_S)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def receivers() -> Iterator[list[Receiver]]:
    both = [Receiver("first"), Receiver("second")]
    yield both
    for one in both:
        one.end()


def transport(**options: Any) -> Any:
    return closing(
        CollectiveTransport("gloo", "127.0.0.1", torch.bfloat16, 2000, **{"deadline_s": PATIENCE_S, **options})
    )


def test_every_bit_arrives_and_a_group_lasts_until_one_of_its_processes_is_gone(receivers: list[Receiver]) -> None:
    expected = {name: checksum(tensor.bfloat16()) for name, tensor in tensors().items()}
    with transport(receivers=2) as way:

        def publish(version: int) -> str:
            channel = way.open(version)
            for one in receivers:
                one.ask(channel)
            assert channel.send(tensors().items()) == expected
            assert [one.answer() for one in receivers] == [expected, expected]
            channel.close("the publication has ended")
            return HELD[channel.address, 0, True].name

        assert [publish(3), publish(4), publish(5)] == ["1-0"] * 3
        channel = way.open(6)
        receivers[0].ask(channel)
        receivers[1].ask(channel, die_after=2)
        with pytest.raises(TransportError, match=r"^sending weights from pipeline stage 0.* after w\d+$"):
            channel.send(tensors().items())
        channel.close("an engine died")
        assert "receiving weights of pipeline stage 0 at first" in receivers[0].answer()
        receivers[1].end()
        receivers[1] = Receiver("another")
        assert [publish(7), publish(8)] == ["5-0"] * 2
        # One that is lost between publications: the others still hold their group.
        receivers[0].end()
        receivers[0] = Receiver("one more")
        assert publish(9) == "7-0"
        # One that does not answer any more; the driver ends the publication.
        channel = way.open(10)
        receivers[0].ask(channel)
        os.kill(receivers[1].process.pid, signal.SIGSTOP)
        threading.Timer(1.0, channel.close, args=("an engine was late",)).start()
        with pytest.raises(TransportError, match=r"stage 0: an engine was late; meeting the others, after no tensor"):
            channel.send(tensors().items())
        assert "an engine was late" in receivers[0].answer()


def test_a_receiver_that_stops_in_the_middle_is_late(receivers: list[Receiver]) -> None:
    with transport(receivers=2) as way:
        first, channel = way.open(0), replace(way.open(1), deadline_s=2.0)
        for one in receivers:
            one.ask(first)
            one.ask(replace(channel, deadline_s=PATIENCE_S))
        first.send(tensors().items())
        assert receivers[0].answer() == receivers[1].answer()

        def stopping() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in tensors().items():
                if name == "w30":
                    os.kill(receivers[1].process.pid, signal.SIGSTOP)
                yield name, tensor

        began = time.monotonic()
        with pytest.raises(
            TransportError, match=r"no answer within 2 s; waiting for the engines to take a bucket, after (w|more)\d+"
        ):
            # Enough to fill the sockets between the processes.
            more = ((f"more{i}", torch.zeros(10, 100)) for i in range(4000))
            channel.send(chain(stopping(), more))
        assert time.monotonic() - began < PATIENCE_S
        assert "the other side failed" in receivers[0].answer()


def test_stages_are_taken_in_order() -> None:
    with transport(stages=2) as way:
        channel = way.open(0)
        parts = [list(tensors().items())[:15], list(tensors().items())[15:]]
        threads = [threading.Thread(target=channel.of_stage(stage).send, args=(parts[stage],)) for stage in range(2)]
        for thread in threads:
            thread.start()
        assert [name for name, _ in channel.receive()] == list(tensors())
        for thread in threads:
            thread.join()


def _send_and_die(channel: CollectiveChannel) -> None:
    def killed() -> Iterator[tuple[str, Tensor]]:
        yield from list(tensors().items())[:30]
        os.kill(os.getpid(), signal.SIGKILL)

    channel.send(killed())


def test_a_sender_that_is_killed_leaves_nobody_waiting() -> None:
    with transport() as way:
        channel = way.open(0)
        process = SPAWN.Process(target=_send_and_die, args=(channel,), daemon=True)
        process.start()

        def end() -> None:  # as the driver does, which sees the process die
            process.join()
            channel.close("trainer rank 0 died")

        threading.Thread(target=end).start()
        with pytest.raises(TransportError, match=r"stage 0 at engine \(rank 1 of 2\): .* after w\d+$"):
            list(channel.receive())


def test_what_cannot_be_sent_is_refused_on_both_sides() -> None:
    def fail(items: Any) -> str:
        with transport(stages=1) as way:
            channel = way.open(0)
            found: list[str] = []

            def receive() -> None:
                try:
                    list(channel.receive())
                except TransportError as error:
                    found.append(str(error))

            thread = threading.Thread(target=receive)
            thread.start()
            with pytest.raises((TransportError, ValueError)) as refused:
                channel.send(items)
            thread.join()
            assert str(refused.value) in found[0]
            return str(refused.value)

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from list(tensors().items())[:30]
        raise ValueError("the gather failed")

    assert "large has 0 MiB, a buffer 0" in fail([*tensors().items(), ("large", torch.zeros(1001))])
    assert fail(broken()) == "the gather failed"


def test_nobody_comes_within_the_deadline() -> None:
    with transport(deadline_s=0.3) as way:
        with pytest.raises(TransportError, match=r"no answer within 0.3 s; meeting the others"):
            way.open(0).send(tensors().items())
        with pytest.raises(TransportError, match=r"at engine: no answer within 0.3 s; meeting the others"):
            list(way.open(1).receive())
